"""How weights are made and judged: data, the training stages and the evaluation."""
