"""Known devices, with the flash and RAM that their makers state."""

from dataclasses import dataclass

from lowenergy.base.errors import UserError

KIB = 1024


@dataclass(frozen=True)
class Device:
    flash: int
    ram: int
    source: str


DEVICES = {
    "arduino-nano-33-ble": Device(1024 * KIB, 256 * KIB, "nRF52840 Product Specification v1.8, memory"),
    "rp2040": Device(2048 * KIB, 264 * KIB, "RP2040 Datasheet, 2.6; the Raspberry Pi Pico's external flash"),
    "stm32f746": Device(1024 * KIB, 320 * KIB, "STM32F745xx/F746xx datasheet, DS10916"),
}


def named(name: str) -> Device:
    """Return the device of this name.

    Raises:
        UserError: there is no such device.
    """
    if name not in DEVICES:
        raise UserError(f"--device {name}: there are {', '.join(DEVICES)}")
    return DEVICES[name]
