"""The public calls: for modules and images in somebody's own program what the pipeline does for params.yaml.

`lowenergy` itself names them; each module here is imported when one of its calls is.
"""
