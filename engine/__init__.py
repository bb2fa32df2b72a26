"""The inference engine: a request in, images out. It runs a bundle's graphs and knows nothing of PyTorch or HTTP."""

from engine.bundle import Bundle, BundleError
from engine.generate import GenerateResult, Generator
from engine.request import GenerateRequest, InvalidRequest

__all__ = ["Bundle", "BundleError", "GenerateRequest", "GenerateResult", "Generator", "InvalidRequest"]
