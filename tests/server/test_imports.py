import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "onnx", "models", "training")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_serving_never_imports_torch() -> None:
    assert loaded_after("import server.app, server.serve, server.cli, engine, engine.backends.openvino") == set()


def test_the_command_line_does_not_wait_for_the_http_packages() -> None:
    code = "import sys, server.cli; print('fastapi' in sys.modules, 'openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
