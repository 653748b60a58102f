"""What is to be done before and after a deployment, ticked by looking, never by asking."""

from ._items import Item, State, after, before

__all__ = ["Item", "State", "after", "before"]
