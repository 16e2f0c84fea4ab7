"""Run the whole pipeline on your own images: teachers, every method, figures, one page.

    python examples/pipeline_on_your_images.py FOLDER [STAGE ...]

FOLDER has one sub-directory of images for each class. Run it in a checkout: it changes params.yaml there, as `git diff`
shows. Afterwards everything is a matter of params.yaml, `lowenergy run` and report.html.
"""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

folder, stages = Path(sys.argv[1]).resolve(), sys.argv[2:]
yaml = YAML()  # keeps comments
yaml.width = 120
params = yaml.load(Path("params.yaml"))
params["data"] |= {"source": "folder", "folder": str(folder), "image_size": 32, "channels": 3}
yaml.dump(params, Path("params.yaml"))

for command in (["lowenergy", "check"], ["lowenergy", "run", *stages]):
    print("$", *command, flush=True)
    subprocess.run(command, check=True)
if not stages:
    subprocess.run(["lowenergy", "table"], check=True)

# Output of its first stage, `prepare`, on 2,062 photographs of hand signs:
#   $ lowenergy check
#   params.yaml: valid; source folder, classifier, ebm, jem and 15 branches
#   $ lowenergy run prepare
#   running prepare
#     prepare: train 1487 validation 164 test 411 images
#   done prepare in 23 s
#   1 done in 36 s
