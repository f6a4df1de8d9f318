"""Annotations of the package become run-time checks, before its first import.

Checked are functions whose annotations name arrays, and the fields of dataclasses; all other types
are the type checker's. A function inside another one is made anew in every call of that, and making
a check is slow: its first one alone is checked.
"""

import functools
import re
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# Not infer/{generate,text,chat} and evaluate/{tool_calls,gpt4tools}, which check what users pass
# with messages of their own; not world, which has no arrays and many calls.
CHECKED = (
    *("ops", "flash", "cudnn", "sharding", "distributed", "models", "hf", "llamacpp", "generator"),
    *("aot", "train"),
    *("data.batches", "data.packing", "data.documents", "bench"),
    *("evaluate.arms", "evaluate.answers", "evaluate.lm_eval_tasks", "evaluate.controls"),
    *("evaluate.local_tasks", "evaluate.paired", "evaluate.protocol", "evaluate.results"),
    *("report", "commands", "methods.lora", "methods.lora_gen"),
    *("infer.forward", "infer.gates", "infer.sample", "infer.score"),
)
ARRAYS = re.compile(r"\b(Array|PyTree|Float|Int|UInt|Bool|Num|Shaped|Key)\w*\b")


def _checked(function: Callable) -> Callable:
    # Fields of a pytree may also hold shapes or shardings of the arrays.
    if not function.__annotations__ or function.__name__ in ("__init__", "check_single_arg"):
        return function
    try:
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # an int is a float
    except BeartypeDecorHintException:
        return function  # typing.Self, or a class of protocols: not checked at run time


def worth_a_check(function: Any, made: set[CodeType]) -> bool:
    """True for a class, and for a function of arrays that is no closure made before."""
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    if not any(ARRAYS.search(str(hint)) for hint in function.__annotations__.values()):
        return False
    first = code not in made
    made.add(code)
    return first or "<locals>" not in function.__qualname__


def install() -> None:
    """Checks all modules of CHECKED that are imported from now on."""
    jaxtyped, made = jaxtyping.jaxtyped, set()

    def once(function: Any = None, *, typechecker: Any) -> Any:
        if function is None:
            return functools.partial(once, typechecker=typechecker)
        if not worth_a_check(function, made):
            return function
        return jaxtyped(function, typechecker=typechecker)

    jaxtyping.jaxtyped = once  # which the hook puts before every function and class
    checks = ModuleType("runtime_checks")  # the hook needs an importable name
    checks.check = _checked
    sys.modules[checks.__name__] = checks
    rooms = [f"lorage_jax.{room}" for room in CHECKED]
    jaxtyping.install_import_hook(rooms, "runtime_checks.check")
