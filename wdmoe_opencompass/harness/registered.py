"""What a config's `type=` names: a class itself, or its name in one of OpenCompass's registries."""

from typing import Any


def resolve(registry: Any, named: Any) -> Any:
    """The class of a `type=`; None where there is none."""
    kind = find_registered(registry, named)
    return kind if isinstance(kind, type) else None


def find_registered(registry: Any, named: Any) -> Any:
    """The class or function of a `type=`; None where there is none."""
    try:
        return registry.get(named) if isinstance(named, str) else named
    except (Exception, SystemExit):  # a module may raise anything when it is imported
        return None


def is_subclass(kind: Any, base: type | tuple[type, ...]) -> bool:
    """Whether this is a class, and a subclass of that."""
    return isinstance(kind, type) and issubclass(kind, base)
