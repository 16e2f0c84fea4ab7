"""Train an energy, compress it, draw from both, and say how good the images are.

    python examples/train_an_energy.py [EPOCHS]

An energy is low where images are likely; Langevin steps lead down to them from noise.
"""

import sys

import torch
from sklearn.datasets import load_digits

import lowenergy

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 75
digits = load_digits()
images, labels = torch.tensor(digits.images / 16 * 255).round().to(torch.uint8)[:, None], torch.tensor(digits.target)
train, test = (images[:1500], labels[:1500]), (images[1500:], labels[1500:])
plain = {"name": "cnn", "width": 16, "stem": "3x3", "activation": "swish", "norm": "none"}

# A classifier that only measures: FID compares what it sees in drawn images with what it sees in real ones.
scorer = lowenergy.train(
    {**plain, "activation": "relu", "norm": "batch"},
    "classifier",
    images=train[0],
    labels=train[1],
    epochs=min(epochs, 20),
)
scorer.save("scorer.safetensors")

energy = lowenergy.train(plain, "ebm", images=train[0], epochs=epochs)
energy.save("energy.safetensors")
small = lowenergy.compress(
    energy, "distill", student={"width": 8}, train={"epochs": epochs // 2 or 1}, retrain={"epochs": epochs // 4}
)
small.save("small.safetensors")
for model in ("energy.safetensors", "small.safetensors"):
    drawn = lowenergy.sample(model, n=300, seed=0)
    print(model, lowenergy.fid(drawn, scorer="scorer.safetensors", real=train[0]), sep=": ")
print("test images", lowenergy.fid(test[0], scorer="scorer.safetensors", real=train[0]), sep=": ")

for y in range(8):  # four of them as characters, two to a pixel
    print(*("".join(2 * ".,:-=+*#%@"[int(4.99 * (pixel + 1))] for pixel in image[0, y]) for image in drawn[:4]))

# Output:
#   energy.safetensors: FID 2.244 (1.483 to 3.209), Inception Score 4.366 (4.145 to 4.585), 300 images
#   small.safetensors: FID 3.867 (2.993 to 5.082), Inception Score 3.598 (3.437 to 3.792), 300 images
#   test images: FID 4.257 (3.311 to 5.526), Inception Score 4.49 (4.239 to 4.736), 297 images
#   ......%%%%,,.... ....##@@%%@@.... ....,,%%--...... ......++%%......
#   ..::##%%**@@.... ..**@@####**.... ..,,@@**##--.... ....::@@++--....
#   ..++@@::,,@@::.. ..##**--%%...... ....%%::--::.... ....@@@@,,##::..
#   ..++@@....**##.. ..::%%@@@@::.... ........@@,,.... ..==@@,,,,@@--..
#   ..--##....--##.. ........##@@.... ........##...... ..##++,,++@@....
#   ....%%....++++.. ........,,@@::.. ........@@::.... ..%%@@@@@@++....
#   ....##++++@@,,.. ..,,----++@@::.. ....**@@@@**##:: ......++@@......
#   ......##@@**.... ....##@@@@--.... ....++@@**@@@@%% ......--@@::....
