"""How the weights are judged: distances between sets of pictures, and the demo model's own measures."""
