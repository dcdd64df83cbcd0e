"""The commands, a file each: every one turns its options into one call of a verb."""

from lorasize.cli.commands import apply, calibrate, capacity, check, config, demo, export, plan, show, verify

COMMANDS = (
    calibrate.calibrate, plan.plan, apply.apply, verify.verify, export.export, check.check, show.show, show.base,
    capacity.capacity, config.config, demo.demo,
)  # fmt: skip
"""As `--help` lists them."""
