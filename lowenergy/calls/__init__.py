"""The public calls: they do for modules and images in a user's program what the pipeline does for params.yaml.

`lowenergy` itself exports them; each module here is imported only when one of its calls is used.
"""
