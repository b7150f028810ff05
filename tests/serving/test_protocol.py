"""The protocol, checked: no interleaving loses a task, answers twice, or executes one more than max_attempts times.

On the real code, over MemoryTransport: every single write to what processes share can be the last thing that a process
does.  A write of several bytes can end in its middle.  The lock is given back, as it is when its holder is killed.
"""

import itertools
import mmap
from contextlib import contextmanager, suppress
from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.errors import QueueFull
from serving.ledger import Again
from serving.memory_transport import MemoryTransport

from .transport_contract import at, frame

SEATS, REPLICAS, SLOTS, PLACES = 4, 3, 3, 4


class Killed(BaseException):
    """The process ends here."""


class Cut(Killed):
    """Its last step was taken."""


class Memory:
    """What processes share: each write, and each half of a longer one, is a step."""

    def __init__(self, memory, step):
        self._memory = memory
        self._step = step

    def __getitem__(self, key):
        return self._memory[key]

    def __setitem__(self, key, value):
        self._step()
        if isinstance(key, slice) and len(value) > 1:
            half = len(value) // 2
            self._memory[key.start : key.start + half] = value[:half]
            self._step()
            self._memory[key.start + half : key.stop] = value[half:]
        else:
            self._memory[key] = value

    def __iter__(self):
        return iter(self._memory)


class Shared(MemoryTransport):
    """A transport whose every step can be the last of the process that takes it."""

    def __init__(self, max_attempts=2):
        super().__init__(SLOTS, 64, 64, SEATS, REPLICAS, PLACES, max_attempts)
        self._memories = []
        for part, names in [
            (self._seats, ("_rows", "_heads", "_frames")),
            (self._again, ("_flags", "_tickets")),
            *((held, ("_phases", "_tickets")) for held in self._held),
        ]:
            for name in names:
                memory = getattr(part, name)
                self._memories.append((memory, bytes(memory) if isinstance(memory, mmap.mmap) else [0] * len(memory)))
                setattr(part, name, Memory(memory, self.step))
        self.clear()

    def clear(self):
        """As if it were new."""
        for memory, nothing in self._memories:
            if isinstance(memory, mmap.mmap):
                memory[:] = nothing
            else:
                for index in range(len(memory)):
                    memory[index] = 0
        self._queue.clear()
        self._replies.clear()
        self.steps, self.last = 0, None
        # the seats whose threads were woken; and the uuids of all replies that were ever left
        self.woken = set()
        self.left = []

    def step(self):
        """Killed when the process that runs has taken its last step, and at whatever it tries then."""
        if self.last is not None and self.steps >= self.last:
            raise Cut
        self.steps += 1

    @contextmanager
    def living(self, steps=None):
        """A process that lives for so many steps; yields where to read how it died, if it did."""
        self.steps, self.last = 0, steps
        death = []
        try:
            yield death
        except Killed as error:
            death.append(error)
        finally:
            self.last = None
        assert not self._mutex.locked()

    def _lock(self):
        self.step()
        super()._lock()

    def _push(self, item):
        assert self._mutex.locked()
        self.step()
        return super()._push(item)

    def _head(self):
        assert self._mutex.locked()
        return super()._head()

    def _drop_head(self):
        assert self._mutex.locked()
        self.step()
        super()._drop_head()

    def _put_reply(self, uuid, reply):
        seats = self._seats
        awaited = [seats._heads[24 * seat :][:16] for seat in range(SEATS) if seats._rows[seat]]
        assert uuid in awaited, "a reply was left that nobody waits for"
        self.step()
        super()._put_reply(uuid, reply)
        self.left.append(uuid)

    def _wake(self, seat):
        self.step()
        self.woken.add(seat)

    def _ring(self):
        self.step()
        super()._ring()


@cache
def shared(max_attempts):
    """One for all worlds, which come one after the other: to map memory takes longer than all the rest."""
    return Shared(max_attempts)


class World:
    """Threads that wait, replicas that live and die, and what became of each task."""

    def __init__(self, max_attempts=2):
        self.transport = shared(max_attempts)
        self.transport.clear()
        self.max_attempts = max_attempts
        self.numbers = itertools.count(1)
        # by seat
        self.waiting = {}
        # by uuid
        self.executed = {}
        self.answers = {}
        # those that end the process that predicts them
        self.killers = set()
        # those on which the model raises
        self.raisers = set()
        # by replica
        self.holding = {}
        self.predicting = {}
        # what was in a batch that raised
        self.tried = {}
        self.dead = set()

    # ---- threads

    def offer(self, seat, kind="t", rows=1, steps=None):
        """A thread offers a task.  Returns whether its worker lives."""
        number = next(self.numbers)
        ticket = at(number, seat=seat, rows=rows, alone=kind == "a")
        self.executed[ticket.uuid] = 0
        if kind == "k":
            self.killers.add(ticket.uuid)
        if kind == "e":
            self.raisers.add(ticket.uuid)
        self.transport.woken.discard(seat)
        with self.transport.living(steps) as death, suppress(QueueFull):
            self.transport.offer(ticket, frame(number))
            self.waiting[seat] = ticket
        return not death

    def look(self, seat):
        """A thread that was woken takes its reply."""
        ticket = self.waiting[seat]
        reply = self.transport._replies.pop(ticket.uuid, None) if seat in self.transport.woken else None
        if reply is not None:
            assert ticket.uuid not in self.answers, "answered twice"
            assert reply[1:] == ticket.uuid, "the reply of another"
            self.answers[ticket.uuid] = reply
            self.leave(seat)
        return reply

    def look_all(self):
        for seat in list(self.waiting):
            self.look(seat)

    def leave(self, seat):
        """A thread waits no longer."""
        self.waiting.pop(seat)
        self.transport._seats.leave(seat)

    def end_worker(self, seats):
        """A worker dies, and the next finds its seats."""
        for seat in seats:
            self.waiting.pop(seat, None)
            self.transport._seats.leave(seat)

    # ---- replicas

    @property
    def alive(self):
        return [id for id in range(1, REPLICAS + 1) if id not in self.dead]

    def act(self, id, acts, steps=None, backwards=False):
        """A replica acts, and perhaps dies of it.  Returns whether it was cut off."""
        with self.transport.living(steps) as death:
            self.transport.start_replica(id, lambda: len(self.alive))
            for act in acts:
                self._acts[act](self, id, backwards)
        if death:
            self.die(id)
        return any(isinstance(error, Cut) for error in death)

    def die(self, id):
        self.dead.add(id)
        for kept in (self.holding, self.predicting, self.tried):
            kept.pop(id, None)

    def recover(self, id):
        with self.transport.locked():
            self.transport.recover(id, self._verdict)
        self.dead.discard(id)

    def _verdict(self, ticket, frame):
        # one that was about to be predicted may have been: then there are fewer executions than attempts
        assert ticket.attempts == self.max_attempts >= self.executed[ticket.uuid], "guilty before its time"
        return b"v" + frame[:16]

    def _recover(self, id, backwards):
        for other in sorted(self.dead, reverse=backwards):
            self.recover(other)

    def _take(self, id, backwards):
        taken = self.transport.take(0, 2)
        self.holding.setdefault(id, []).extend(taken)
        if any(one.ticket.alone for one in taken):
            risking = sum(self.transport._held[other - 1].alone() for other in self.alive)
            assert risking <= max(1, len(self.alive) - 1), "all replicas are on suspects"

    def _predict(self, id, backwards):
        while self.holding.get(id):
            self._begin(id, backwards)
            self._end(id, backwards)

    def _begin(self, id, backwards):
        held = self.holding[id]
        together = [one for one in held if not one.ticket.alone and one.ticket.uuid not in self.tried.get(id, ())]
        batch = together or held[:1]
        self.transport.begin(batch)
        self.predicting[id] = batch
        for one in batch:
            self.executed[one.ticket.uuid] += 1
            assert self.executed[one.ticket.uuid] <= self.max_attempts, "executed once too often"

    def _end(self, id, backwards):
        batch = self.predicting.pop(id)
        uuids = {one.ticket.uuid for one in batch}
        if self.killers & uuids:
            raise Killed
        if self.raisers & uuids:
            self.transport.end(batch)
            if len(batch) > 1 and self.transport.attempts_left(batch[0]):
                # each once more, alone
                self.tried.setdefault(id, set()).update(uuids)
                return
        for one in batch:
            self.transport.publish(one, b"r" + one.ticket.uuid)
            self.holding[id].remove(one)

    def _serve(self, id, backwards):
        while True:
            self._predict(id, backwards)
            self._take(id, backwards)
            if not self.holding[id]:
                break

    _acts = {"R": _recover, "T": _take, "P": _predict, "S": _serve, "B": _begin, "E": _end}

    # ---- the end

    def finish(self, backwards=False):
        """Replicas live and die until nothing is left to do; then every promise is looked at."""
        ids = [*range(1, REPLICAS + 1)]
        for id in itertools.islice(itertools.cycle(ids[::-1] if backwards else ids), 50):
            self.look_all()
            if not self.waiting and not self.dead and not any(self.holding.values()):
                break
            self.act(id, "ERS" if id in self.predicting else "RS", backwards=backwards)
        self.look_all()
        self.check()

    def check(self):
        assert not self.waiting, "a task is lost"
        transport = self.transport
        transport.start_replica(1, lambda: 1)
        # drops what nobody waits for
        assert transport.take(0, 99) == []
        assert not transport._queue and not transport._mutex.locked() and not transport.waiting()
        assert [list(held.tickets()) for held in transport._held] == [[]] * REPLICAS
        assert transport._again.tickets() == []
        assert len(set(transport.left)) == len(transport.left), "a reply was left twice"
        assert not {uuid for uuid, answer in self.answers.items() if answer[:1] == b"r"} & self.killers


# ---- every kill


def scenario(tasks, max_attempts=2):
    """Tasks wait: "t" is tame, "a" a suspect, "k" kills what predicts it, and on "e" the model raises."""
    world = World(max_attempts)
    for seat, kind in enumerate(tasks):
        assert world.offer(seat, kind)
    return world


def live(tasks, programs, kills, eager, backwards, max_attempts):
    """Replicas live one after the other, each for its number of steps.  Returns whether the last was cut off."""
    world = scenario(tasks, max_attempts)
    cut = False
    for (id, acts), steps in zip(programs, kills, strict=False):
        cut = world.act(id, acts if id not in world.dead else "R" + acts, steps, backwards)
        if eager:
            world.look_all()
    world.finish(backwards)
    return cut


def kill_everywhere(tasks, programs, eager, backwards, max_attempts, kills=()):
    """Kill each of some replicas after each of its steps: all that there are of such lives.  Returns how many."""
    count = 0
    for steps in itertools.count():
        count += 1
        cut = live(tasks, programs, (*kills, steps), eager, backwards, max_attempts)
        if not cut:
            return count
        if len(kills) + 1 < len(programs):
            count += kill_everywhere(tasks, programs, eager, backwards, max_attempts, (*kills, steps))


# R: recover the dead, T: take, P: predict and publish, S: serve to the end
CHAINS = {
    "and its heir, as it recovers": [(1, "S"), (2, "RS")],
    "and its successor, as it recovers": [(1, "S"), (1, "RS")],
    "and another that took before it looked": [(1, "S"), (2, "TRPS")],
    "and another that answered before it looked": [(1, "S"), (2, "TPRS")],
}
ORDERS = {"oldest first": False, "youngest first": True}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("tasks", ["t", "k", "a", "tt", "te", "tk", "aa", "tta", "kte"])
def test_whatever_step_is_the_last_of_a_replica(tasks, chain, order):
    for eager in (True, False):
        assert kill_everywhere(tasks, CHAINS[chain], eager, ORDERS[order], 2) > 20


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tasks", ["t", "k", "te", "tt"])
def test_whatever_step_is_the_last_of_a_replica_when_each_task_is_predicted_once_at_the_most(tasks, order):
    for eager in (True, False):
        assert kill_everywhere(tasks, [(1, "S"), (2, "TRPS")], eager, ORDERS[order], 1) > 20


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("second", ["RS", "TRPS", "TPRS"])
@pytest.mark.parametrize("tasks", ["t", "k"])
def test_whatever_step_is_the_last_of_each_of_three_replicas(tasks, second, order):
    assert kill_everywhere(tasks, [(1, "S"), (2, second), (3, "TRS")], True, ORDERS[order], 2) > 200


@pytest.mark.parametrize("kind", ["t", "a"])
def test_whatever_step_is_the_last_of_a_worker(kind):
    # of a queue of any depth; and what waits at the seat of another worker is answered
    for before, steps in itertools.product(range(SLOTS + 1), range(40)):
        world = scenario("t" * before)
        cut = not world.offer(SEATS - 1, kind, steps=steps)
        if cut:
            world.waiting.pop(SEATS - 1, None)
        # a replica takes what a dead thread has offered, or the next worker is there before
        for early in (True, False):
            if early:
                world.act(1, "T")
            world.end_worker([SEATS - 1] if cut else [])
        world.offer(SEATS - 1)
        world.finish()
        if not cut and steps > 12:
            break
    assert steps > 12


def test_half_a_ticket_is_never_read():
    old, new = at(1, seat=1, alone=True), at(2, seat=1)._replace(rows=7)
    for last in itertools.count():
        again, step = Again(SEATS), itertools.count()
        again.put(old)

        def cut(step=step, last=last):
            if next(step) >= last:
                raise Cut

        again._flags, again._tickets = Memory(again._flags, cut), Memory(again._tickets, cut)
        with suppress(Cut):
            again.put(new)
            break
        assert again.tickets() in ([old], [])
    assert again.tickets() == [new] and last == 4


# ---- any interleaving

STEPS = st.none() | st.integers(0, 25)
IDS = st.integers(1, REPLICAS)
PLACES_TO_SIT = st.integers(0, SEATS - 1)


class Interleaving(RuleBasedStateMachine):
    """Threads, workers and replicas in any order, each of which may die at any of its steps."""

    def __init__(self):
        super().__init__()
        self.world = World()

    @precondition(lambda self: len(self.world.waiting) < SEATS)
    @rule(seat=PLACES_TO_SIT, kind=st.sampled_from("ttekaa"), rows=st.integers(1, 2), steps=STEPS)
    def offer(self, seat, kind, rows, steps):
        if seat in self.world.waiting:
            return
        if not self.world.offer(seat, kind, rows, steps):
            # two seats are one worker's: nobody waits there now, and the next worker may take its time
            for own in (seat, seat ^ 1):
                self.world.waiting.pop(own, None)

    @rule(seat=PLACES_TO_SIT)
    def worker_follows(self, seat):
        for own in (seat, seat ^ 1):
            if own not in self.world.waiting:
                self.world.end_worker([own])

    @rule(seat=PLACES_TO_SIT)
    def worker_dies(self, seat):
        for own in (seat, seat ^ 1):
            self.world.waiting.pop(own, None)

    @rule(seat=PLACES_TO_SIT)
    def thread_looks(self, seat):
        if seat in self.world.waiting:
            self.world.look(seat)

    @rule(seat=PLACES_TO_SIT)
    def thread_leaves(self, seat):
        if seat in self.world.waiting and not self.world.look(seat):
            self.world.leave(seat)

    @rule(id=IDS, steps=STEPS)
    def replica_takes(self, id, steps):
        if id not in self.world.dead and id not in self.world.predicting and not self.world.holding.get(id):
            self.world.act(id, "T", steps)

    @rule(id=IDS, steps=STEPS)
    def replica_begins(self, id, steps):
        if self.world.holding.get(id) and id not in self.world.predicting:
            self.world.act(id, "B", steps)

    @rule(id=IDS, steps=STEPS)
    def replica_ends(self, id, steps):
        if id in self.world.predicting:
            self.world.act(id, "E", steps)

    @rule(id=IDS)
    def replica_dies(self, id):
        if id not in self.world.dead:
            self.world.die(id)

    @precondition(lambda self: self.world.dead)
    @rule(id=IDS, backwards=st.booleans(), steps=STEPS)
    def replica_recovers_others(self, id, backwards, steps):
        if id not in self.world.dead:
            self.world.act(id, "R", steps, backwards)

    @precondition(lambda self: self.world.dead)
    @rule(choice=st.integers(0, REPLICAS - 1), steps=STEPS)
    def successor_recovers_its_own(self, choice, steps):
        id = sorted(self.world.dead)[choice % len(self.world.dead)]
        with self.world.transport.living(steps):
            self.world.recover(id)

    @invariant()
    def the_lock_is_free(self):
        assert not self.world.transport._mutex.locked()

    @invariant()
    def who_waits_is_counted(self):
        rows = sum(ticket.rows for ticket in self.world.waiting.values())
        assert self.world.transport.waiting_rows() >= rows

    def teardown(self):
        for seat in range(SEATS):
            if seat not in self.world.waiting:
                self.world.end_worker([seat])
        self.world.finish()


TestAnyInterleaving = Interleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
