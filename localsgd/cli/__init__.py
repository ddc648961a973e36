"""The command ``localsgd``: launch a job, look at what this machine offers."""


def main() -> None:
    """Entry point; loads click only when called."""
    from localsgd.cli.commands import localsgd

    localsgd()


__all__ = ["main"]
