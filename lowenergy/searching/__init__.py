"""`lowenergy search`: the smallest model that is good enough, over chains of methods and their parameters."""
