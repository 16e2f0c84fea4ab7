"""C models on processors that are not this machine's: compiled for Cortex-M and AVR, run by QEMU and simavr."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
FLAGS = ["-std=c99", "-ffp-contract=off", "-mthumb", "-ffunction-sections", "-fdata-sections"]
TARGETS = {  # what the compiler is told, and the machine that QEMU plays
    "cortex-m0plus": (["-mcpu=cortex-m0plus"], ["-M", "mps2-an385"]),  # a Cortex-M3, which runs the same code
    "cortex-m4f": (["-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"], ["-M", "mps2-an386"]),
    "cortex-m7": (["-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard"], ["-M", "mps2-an500"]),
}


@dataclass(frozen=True)
class Run:
    hash: int  # FNV-1a of the image's bytes
    stack: int


def missing(tools: Sequence[str] = (COMPILER, EMULATOR)) -> str | None:
    """What is not installed; None if nothing is."""
    return next((tool for tool in tools if not shutil.which(tool)), None)


def code(model: Path, target: str, level: str = "-Os") -> int:
    """Bytes of code and constants of model.c alone."""
    built = model / f"model-{target}{level}.o"
    subprocess.run([COMPILER, *FLAGS, *TARGETS[target][0], level, "-c", "-o", built, model / "model.c"], check=True)
    size = _text(built)
    built.unlink()
    return size


def _text(path: Path) -> int:
    shown = subprocess.run(["arm-none-eabi-size", path], capture_output=True, text=True, check=True).stdout
    return int(shown.splitlines()[1].split()[0])


def _linked(model: Path, target: str, level: str, more: list[str]) -> Path:
    program = model / f"program-{target}{level}.elf"
    subprocess.run(
        [COMPILER, *FLAGS, *TARGETS[target][0], level, *more, "-nostartfiles", "-T", HERE / "arm.ld",
         "-Wl,--gc-sections", "-I", model, "-o", program, HERE / "arm.c", model / "model.c"],
        check=True,
    )  # fmt: skip
    return program


def run(model: Path, target: str, *, level: str = "-Os", seed: int = 3, steps: int = 4) -> Run:
    """Draw an image on an emulated processor."""
    program = _linked(model, target, level, [f"-DSEED={seed}", f"-DSTEPS={steps}"])
    command = [EMULATOR, *TARGETS[target][1], "-nographic", "-monitor", "none", "-semihosting-config",
               "enable=on,target=native", "-kernel", str(program)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    finally:
        program.unlink()
    found, stack = (done.stdout + done.stderr).split()[:2]
    return Run(int(found, 16), int(stack, 16))


# -- AVR --------------------------------------------------------------------------------------------------------------

AVR_TOOLS = ("avr-gcc", "simavr")
AVR_FLAGS = [
    "-mmcu=atmega328p", "-std=c99", "-ffp-contract=off", "-Os", "-ffunction-sections", "-fdata-sections",
    "-Wl,--gc-sections",
]  # fmt: skip


@dataclass(frozen=True)
class AvrRun:
    """A program on an ATmega328P, of 32,768 bytes of flash and 2,048 of RAM."""

    hash: int
    flash: int  # of the whole program
    ram: int  # of all that has a place in it: constants too, which this processor reads from there
    stack: int
    cycles: int


def run_on_avr(model: Path, *, seed: int = 3, steps: int = 4) -> AvrRun:
    """Draw an image on a simulated ATmega328P."""
    program = model / "program.elf"
    subprocess.run(
        ["avr-gcc", *AVR_FLAGS, f"-DSEED={seed}", f"-DSTEPS={steps}", "-I", model, "-o", program, HERE / "avr.c",
         model / "model.c"],
        check=True,
    )  # fmt: skip
    try:
        sizes = subprocess.run(["avr-size", program], capture_output=True, text=True, check=True).stdout
        text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
        command = ["simavr", "-m", "atmega328p", "-f", "16000000", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    finally:
        program.unlink()
    found, stack, cycles = (int(word, 16) for word in re.findall(r"([0-9a-f]{8})\.", done.stdout + done.stderr))
    return AvrRun(found, text + data, data + bss, stack, cycles)
