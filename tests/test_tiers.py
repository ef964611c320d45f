"""What stays in memory: the policy alone, against a device that counts its bytes."""

import random
from dataclasses import replace

import pytest

from webui.diffusion import tiers
from webui.diffusion.tiers import Budgets, Entry, Refused, Want, Working, plan
from webui.errors import OutOfMemory

SIZES = {"unet": 1700, "vae": 160, "text": 240}


class Fake:
    """A device and RAM that hold names and bytes, and do what the policy says."""

    def __init__(self, device: int, ram: int = 0) -> None:
        self.budgets = Budgets(device, ram)
        self.entries: dict[str, Entry] = {}
        self.now = 0.0
        self.log: list[tuple[str, str]] = []
        self.most_on_device = 0

    def used(self, tier: str) -> int:
        return sum(entry.bytes for entry in self.entries.values() if entry.tier == tier)

    def ask(self, wants: list[Want], working: int = 0) -> list[tuple[str, str]]:
        """The moves made, as (action, key)."""
        self.now += 10
        moves = plan(list(self.entries.values()), wants, working, self.budgets, self.now)
        for move in moves:
            self._do(move)
            self.most_on_device = max(self.most_on_device, self.used("device"))
        for want in wants:
            self.entries[want.key] = replace(self.entries[want.key], last_used=self.now)
        done = [(move.action, move.key) for move in moves]
        self.log += done
        return done

    def _do(self, move: tiers.Move) -> None:
        if move.action == "evict":
            del self.entries[move.key]
        elif move.action == "load":
            assert move.key not in self.entries
            self.entries[move.key] = Entry(move.key, move.bytes, move.tier, move.bytes / 1000, self.now)
        else:
            tier = "RAM" if move.action == "to RAM" else "device"
            assert self.entries[move.key].tier != tier
            self.entries[move.key] = replace(self.entries[move.key], tier=tier)

    def mark(self, key: str, **changes: object) -> None:
        self.entries[key] = replace(self.entries[key], **changes)  # type: ignore[arg-type]


def model(name: str, tier: tiers.Tier = "device") -> list[Want]:
    return [Want(f"{name}.{part}", size, tier) for part, size in SIZES.items()]


def test_two_people_alternating_models_load_each_once_where_both_fit():
    fake = Fake(5000)
    for name in "abababab":
        fake.ask(model(name), working=500)
    assert [what for what, _ in fake.log].count("load") == 6
    assert len(fake.log) == 6


def test_two_people_alternating_models_swap_them_through_ram_without_the_disk():
    fake = Fake(3000, ram=5000)
    for name in "abab":
        fake.ask(model(name), working=500)
    assert [what for what, _ in fake.log].count("load") == 6
    assert fake.ask(model("a"), 500)[0] == ("to RAM", "b.unet")  # the least that makes room
    assert not [what for what, _ in fake.log if what == "evict"]
    assert fake.most_on_device <= 3000 - 500


def test_where_ram_cannot_hold_the_second_it_is_dropped_and_loaded_again():
    fake = Fake(3000, ram=1000)
    fake.ask(model("a"))
    assert ("evict", "a.unet") in fake.ask(model("b"))
    assert ("load", "a.unet") in fake.ask(model("a"))


def test_a_part_that_two_models_share_is_loaded_once():
    fake = Fake(5000)
    fake.ask([Want("shared vae", 160), Want("a.unet", 1700)])
    assert fake.ask([Want("shared vae", 160), Want("b.unet", 1700)]) == [("load", "b.unet")]


def test_the_longest_unused_leaves_the_device_first():
    fake = Fake(600, ram=600)
    for key in "abc":
        fake.ask([Want(key, 200)])
    fake.ask([Want("a", 200)])
    assert fake.ask([Want("d", 200)]) == [("to RAM", "b"), ("load", "d")]


def test_of_two_equally_idle_the_one_that_comes_back_fast_is_dropped():
    fake = Fake(400)
    fake.ask([Want("slow", 200), Want("fast", 200)])
    fake.mark("slow", reload=30.0)
    fake.mark("fast", reload=0.2)
    assert fake.ask([Want("new", 100)]) == [("evict", "fast"), ("load", "new")]


def test_a_slow_load_is_outweighed_by_idleness_in_the_end():
    fake = Fake(400)
    fake.ask([Want("slow", 200), Want("fast", 200)])
    fake.mark("slow", reload=30.0)
    fake.mark("fast", reload=0.2)
    for _ in range(200):
        fake.ask([Want("fast", 200)])
    fake.now += 100
    fake.ask([Want("fast", 200)])
    assert fake.ask([Want("new", 100)])[0] == ("evict", "slow")


def test_nothing_is_evicted_that_need_not_be():
    fake = Fake(1000)
    fake.ask([Want("small", 100)])
    fake.ask([Want("large", 800)])
    assert fake.ask([Want("new", 500)]) == [("evict", "large"), ("load", "new")]


@pytest.mark.parametrize("mark", ["in_use", "pinned", "held"])
def test_what_computes_or_is_pinned_or_needed_is_never_dropped(mark):
    fake = Fake(400)
    fake.ask([Want("kept", 200)])
    fake.ask([Want("other", 200)])
    fake.mark("kept", **{mark: True})
    assert fake.ask([Want("new", 200)]) == [("evict", "other"), ("load", "new")]
    fake.mark("new", **{mark: True})
    with pytest.raises(Refused):
        fake.ask([Want("more", 200)])


def test_what_computes_is_not_even_moved_and_what_is_pinned_may_be():
    fake = Fake(400, ram=400)
    fake.ask([Want("computing", 200), Want("pinned", 200)])
    fake.mark("computing", in_use=True)
    fake.mark("pinned", pinned=True)
    assert fake.ask([Want("new", 200)])[0] == ("to RAM", "pinned")


def test_too_much_is_refused_with_the_numbers_before_anything_is_touched():
    fake = Fake(4_200_000_000)
    fake.ask([Want("a", 1_000_000_000)])
    before = dict(fake.entries)
    with pytest.raises(OutOfMemory, match=r"needs 6\.1 GB of memory, 4\.2 GB can be freed"):
        fake.ask([Want("b", 5_000_000_000)], working=1_100_000_000)
    assert fake.entries == before


def test_the_working_memory_of_the_job_is_kept_free():
    fake = Fake(1000)
    fake.ask([Want("a", 400)])
    assert fake.ask([Want("b", 400)], working=100) == [("load", "b")]
    assert fake.ask([Want("b", 400)], working=300) == [("evict", "a")]


def test_a_part_wanted_in_ram_is_left_on_a_device_that_has_room():
    fake = Fake(1000, ram=1000)
    fake.ask([Want("a", 400)])
    assert fake.ask([Want("a", 400, "RAM")]) == []


def test_idle_parts_are_given_back_after_a_while_and_pinned_ones_are_not():
    fake = Fake(1000)
    fake.ask([Want("a", 100), Want("b", 100)])
    fake.mark("b", pinned=True)
    assert tiers.idle(fake.entries.values(), fake.now + 59, 60) == []
    assert tiers.idle(fake.entries.values(), fake.now + 60, 60) == ["a"]


def test_no_run_of_requests_ever_takes_more_than_the_budgets():
    chance = random.Random(1)
    for _ in range(200):
        fake = Fake(chance.randrange(2500, 6000), ram=chance.choice([0, 1500, 4000, 9000]))
        for _ in range(30):
            working = chance.randrange(0, 300)
            try:
                fake.ask(model(chance.choice("abcde")), working)
            except Refused:
                continue
            assert fake.used("device") + working <= fake.budgets.device
            assert fake.used("RAM") <= fake.budgets.ram
        assert fake.most_on_device <= fake.budgets.device


@pytest.mark.parametrize(
    ("budget", "mode"), [(2600, "none"), (2599, "model"), (2360, "model"), (2359, "group"), (100, "group")]
)
def test_the_mode_is_the_fastest_that_fits(budget, mode):
    sizes = {"text": 240, "net": 1700, "vae": 160}
    assert tiers.choose_mode(sizes, Working(net=500, vae=300), budget) == mode


def test_the_next_model_is_read_ahead_only_into_memory_that_nobody_needs():
    assert tiers.may_read_ahead(4000, ram=10_000, ram_free=6000, working=1000)
    assert not tiers.may_read_ahead(4001, ram=10_000, ram_free=6000, working=1000)


def test_the_next_cheaper_mode_ends_at_group():
    assert [tiers.cheaper(mode) for mode in tiers.MODES] == ["model", "group", "group"]


def test_the_vae_of_stable_diffusion_needs_what_was_counted():
    need = tiers.working(1024, 1024, samples=2)
    assert need.vae / tiers.INSIDE / 2**20 == 3840  # float32
    assert need.net / tiers.INSIDE / 2**20 == pytest.approx(920, rel=0.01)
    assert tiers.tiled(need, 1024, 1024, pictures=1).vae == need.vae // 4
    assert tiers.working(1024, 1024, samples=2, number=2).vae * 2 == need.vae
