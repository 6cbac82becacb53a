from __future__ import annotations

from dataclasses import dataclass

from rustunnel_py.model.ring import Budget, Ring


@dataclass(eq=False)
class Item:
    size: int
    stored: bool = False


def test_the_newest_stay_and_what_was_not_stored_is_counted() -> None:
    budget = Budget(1000)
    ring: Ring[Item] = Ring(3, budget)
    items = [Item(10) for _ in range(5)]
    items[0].stored = True
    for item in items:
        ring.append(item)
    assert list(ring) == items[2:]
    assert list(reversed(ring)) == items[:1:-1]
    assert ring.overwritten == 1
    assert ring.bytes == budget.used == 30


def test_past_the_bytes_the_largest_ring_gives_up_its_oldest() -> None:
    budget = Budget(1600)
    small: Ring[Item] = Ring(100, budget)
    large: Ring[Item] = Ring(100, budget)
    small.append(Item(100))
    for _ in range(15):
        large.append(Item(100))
    assert budget.used == 1600
    large.append(Item(100))
    assert budget.used == 1500
    assert len(small) == 1
    assert large.overwritten == 2


def test_two_equal_rings_shrink_by_turns() -> None:
    budget = Budget(1600)
    rings: list[Ring[Item]] = [Ring(100, budget) for _ in range(2)]
    for _ in range(9):
        for ring in rings:
            ring.append(Item(100))
    assert budget.used <= 1600
    assert abs(rings[0].bytes - rings[1].bytes) <= 200  # one item given up, one come since


def test_one_item_larger_than_everything_leaves_nothing() -> None:
    budget = Budget(100)
    ring: Ring[Item] = Ring(10, budget)
    ring.append(Item(1000))
    assert len(ring) == 0
    assert budget.used == 0


def test_removing_and_closing_give_the_bytes_back() -> None:
    budget = Budget(1000)
    ring: Ring[Item] = Ring(10, budget)
    first, second = Item(10), Item(20)
    ring.append(first)
    ring.append(second)
    ring.remove(first)
    assert (budget.used, ring.overwritten) == (20, 0)
    second.stored = True
    ring.close()
    assert (budget.used, ring.overwritten, len(budget.rings)) == (0, 0, 0)
