"""Errors that the user can fix are UserErrors: they say what, where and what to do, and are shown without traceback."""

import errno

ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some of your quota and run again",
    errno.EACCES: "give yourself the permission and run again",
    errno.EPERM: "give yourself the permission and run again",
    errno.EROFS: "give a place that can be written",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a file stands where a directory is needed; give another place",
    errno.EEXIST: "a file stands where a directory is needed; give another place",
    errno.ENOENT: "make it, or give another",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "the link leads to itself; give another place",
}

EXTRAS = {  # optional packages -> the extra that installs them
    **dict.fromkeys(("lightning_fabric", "torch_pruning", "torchao"), "compress"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), "onnx"),
    **dict.fromkeys(("dvc", "dvclive", "matplotlib", "pandas", "PIL", "rich", "ruamel", "sklearn"), "pipeline"),
    "torchvision": "pipeline",
    "distributed": "cluster",
    "optuna": "search",
    "ziglang": "device",
}


class UserError(ValueError):
    """Bad params, data or files, or a training that cannot continue."""


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of somebody else's exception on one line, cut to `most` characters: torch's can have twelve lines."""
    text = " ".join(str(error).split())
    return (text if text.isprintable() else ascii(text))[:most] or type(error).__name__


def explained(error: UserError | OSError) -> str:
    """Explain an error in one line that names the file and what to do.

    It may promise that nothing is lost, since files are written as a whole: what was there before is untouched.

    Raises:
        OSError: the error itself, if it is not one that the user can fix.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.errno not in ADVICE:
        raise error
    return f"{error.filename or 'a file'}: {error.strerror}; {ADVICE[error.errno]}. Nothing that was there is lost"


def missing(error: ModuleNotFoundError) -> UserError:
    """An error that says in one line which extra installs the missing package.

    Raises:
        ModuleNotFoundError: the error itself, if no extra installs that package.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return UserError(f"this needs {package}: pip install 'lowenergy[{EXTRAS[package]}]'")
