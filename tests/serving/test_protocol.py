"""The protocol, checked: whatever dies or runs in between, no task is lost, answered twice, or executed too often.

On the real code, over MemoryTransport.  The lock is given back, as it is when its holder is killed.

Every kill: each write to what processes share can be the last thing that a replica or a worker does, and a write of
several bytes can end in its middle.  Up to three replicas die after one another; all such lives are tried.

Every interleaving of steps: two or three actors (replicas that take, predict and publish, or recover; a thread that
waits, leaves, or offers the next task at its seat) run step by step, and before each write, each half of a longer one,
and each read another may run on.  For small scenes all schedules with at most one, two or three preemptions are tried,
except those that differ only in what no other actor touches; each with every death of one replica that leaves another
memory, before the others run or among them.  For larger scenes schedules are drawn, always the same ones.

Replicas sleep as well, until one is rung: none sleeps on while something waits for it.

Any order of whole acts, with any kills, is drawn by a state machine.

Some tasks name a version: two replicas serve one of them and the third another, by default as well or not.

What is not checked here: uWSGI's queue and lock; reads and writes that the processor reorders; reads that end
in the middle of a write, but for those of which the halves of the write are seen.
"""

import itertools
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.ledger import ANY, Again, Replies
from serving.memory_transport import MemoryTransport

from .transport_contract import at, frame

SEATS, REPLICAS, PLACES = 4, 3, 4
# the versions that some kinds of tasks name; nobody serves the last one
UNKNOWN = 9
NAMED = {"w": 1, "v": 2, "x": 3, "u": UNKNOWN}


class Killed(BaseException):
    """The process ends here."""


class Cut(Killed):
    """Its last step was taken."""


class Memory:
    """What processes share: each write, and each half of a longer one, is a step; each read is a look."""

    def __init__(self, memory, step, look=lambda: None):
        self._memory = memory
        self._step = step
        self._look = look

    def __getitem__(self, key):
        self._look()
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
        self._look()
        return iter(self._memory)

    def find(self, item):
        self._look()
        return self._memory.find(item)


class Shared(MemoryTransport):
    """A transport whose every step can be the last of the process that takes it."""

    def __init__(self, max_attempts=2):
        super().__init__(64, 64, SEATS, REPLICAS, PLACES, max_attempts)
        self._replies.put = self.left_reply
        self._memories = []
        # who takes turns, while they do
        self.turns = None
        for part, names in [
            (self._seats, ("_rows", "_heads", "_frames", "_queued", "_claimed", "_versions", "_naming")),
            (self._again, ("_flags", "_tickets")),
            (self._replies, ("_uuids",)),
            (self, ("_asleep",)),
            *((held, ("_phases", "_tickets", "_batch", "_left")) for held in self._held),
        ]:
            for name in names:
                memory = getattr(part, name)
                where = len(self._memories)
                self._memories.append((memory, bytes(memory) if isinstance(memory, mmap.mmap) else list(memory)))
                setattr(part, name, Memory(memory, partial(self.step, where), partial(self.look, where)))
        self.clear()

    def clear(self):
        """As if it were new."""
        for memory, nothing in self._memories:
            if isinstance(memory, mmap.mmap):
                memory[:] = nothing
            else:
                for index, value in enumerate(nothing):
                    memory[index] = value
        self._queue.clear()
        self.steps, self.last = 0, None
        # whether the doorbell has rung, and who has not heard the gong yet
        self.rung, self.unheard = False, set()
        # the seats whose threads were woken; and the uuids of all replies that were ever left
        self.woken = set()
        self.left = []

    def state(self):
        """All that processes share."""
        memories = [bytes(memory) if isinstance(memory, mmap.mmap) else tuple(memory) for memory, _ in self._memories]
        return (*memories, *self._queue, frozenset(self.woken))

    def step(self, where):
        """Killed when the process that runs has taken its last step, and at whatever it tries then."""
        if self.turns is not None:
            self.turns.step(where)
            return
        if self.last is not None and self.steps >= self.last:
            raise Cut
        self.steps += 1

    def look(self, where):
        """Another may have its turn before what is shared is read."""
        if self.turns is not None:
            self.turns.look(where)

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
        self.step("lock")
        if self.turns is not None:
            self.turns.wait(lambda: not self._mutex.locked())
        super()._lock()

    def _push(self, seat):
        self.step("queue")
        super()._push(seat)

    def _pull(self):
        assert self._mutex.locked()
        self.step("queue")
        return super()._pull()

    def _queue_of_seats(self):
        assert self._mutex.locked()
        self.look("queue")
        return super()._queue_of_seats()

    def _depth(self):
        self.look("queue")
        return super()._depth()

    def left_reply(self, ticket, replica, reply):
        if self.turns is None:
            seats = self._seats
            awaited = [seats._heads[24 * seat :][:16] for seat in range(SEATS) if seats._rows[seat]]
            assert ticket.uuid in awaited, "a reply was left that nobody waits for"
        Replies.put(self._replies, ticket, replica, reply)
        self.left.append(ticket.uuid)

    def _wake(self, seat):
        self.step("woken")
        self.woken.add(seat)

    def _ring(self):
        self.step("doorbell")
        self.rung = True

    def _ring_all(self):
        self.step("doorbell")
        self.unheard.update(range(1, REPLICAS + 1))

    def _sleep(self, wait_s):
        """Until it rings; there is no other end."""
        id, default = self._id, self._default
        self.turns.wait(lambda: id in self.unheard or (default and self.rung))
        self.unheard.discard(id)
        if default:
            self.rung = False
        return True


def digest(ticket):
    return ticket.uuid + ticket.uuid[:8]


@cache
def shared(max_attempts):
    """One for all worlds, which come one after the other: to map memory takes longer than all the rest."""
    return Shared(max_attempts)


class World:
    """Threads that wait, replicas that live and die, and what became of each task."""

    def __init__(self, max_attempts=2, versions=None):
        self.transport = shared(max_attempts)
        self.transport.clear()
        # by replica: its version, and whether it serves by default
        self.versions = versions or {}
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
        # the seats of workers that have died and have no successor yet
        self.ended = set()
        # the replicas that sleep in the end
        self.asleep = set()

    # ---- threads

    def offer(self, seat, kind="t", rows=1, steps=None):
        """A thread offers a task.  Returns whether its worker lives."""
        with self.transport.living(steps) as death:
            self.put(seat, kind, rows)
        return not death

    def put(self, seat, kind="t", rows=1):
        number = next(self.numbers)
        ticket = at(number, seat=seat, rows=rows, alone=kind == "a", version=NAMED.get(kind, ANY))
        self.executed[ticket.uuid] = 0
        if kind == "k":
            self.killers.add(ticket.uuid)
        if kind == "e":
            self.raisers.add(ticket.uuid)
        self.transport.woken.discard(seat)
        self.transport.offer(ticket, frame(number))
        self.waiting[seat] = ticket

    def look(self, seat):
        """A thread that was woken takes its reply."""
        if seat not in self.transport.woken:
            return None
        self.transport.step("woken")
        self.transport.woken.discard(seat)
        return self.fetch(seat)

    def fetch(self, seat):
        """A thread leaves with its reply if that is there."""
        ticket = self.waiting[seat]
        reply = self.transport._replies.find(ticket)
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
        self.transport.start_seats(seats)

    # ---- replicas

    @property
    def alive(self):
        return [id for id in range(1, REPLICAS + 1) if id not in self.dead]

    def act(self, id, acts, steps=None, backwards=False):
        """A replica acts, and perhaps dies of it.  Returns whether it was cut off."""
        with self.transport.living(steps) as death:
            self.start(id)
            for act in acts:
                self._acts[act](self, id, backwards)
        if death:
            self.die(id)
        return any(isinstance(error, Cut) for error in death)

    def start(self, id):
        self.transport.start_replica(id, lambda: len(self.alive))
        version, default = self.versions.get(id, (ANY, True))
        self.transport.serve(version, default, lambda version: version != UNKNOWN)

    def die(self, id):
        self.dead.add(id)
        for kept in (self.holding, self.predicting, self.tried):
            kept.pop(id, None)

    def recover(self, id):
        with self.transport.locked():
            # another may have done it
            if id in self.dead:
                recovery = self.transport.recover(id, self._verdict)
                self.dead.discard(id)
                for ticket, left in recovery.late:
                    assert left in (None, digest(ticket)), "the digest of another"

    def _verdict(self, ticket, frame):
        # one that was about to be predicted may have been: then there are fewer executions than attempts
        assert ticket.attempts == self.max_attempts >= self.executed[ticket.uuid], "guilty before its time"
        return b"v" + frame[:16]

    def _recover(self, id, backwards):
        for other in sorted(self.dead, reverse=backwards):
            self.recover(other)

    def _wait(self, id, backwards):
        while not self.holding.get(id):
            self._take(id, backwards, 1)

    def _take(self, id, backwards, wait_s=0):
        taken = self.transport.take(wait_s, 2)
        self.holding.setdefault(id, []).extend(taken)
        version, default = self.versions.get(id, (ANY, True))
        for one in taken:
            named = one.ticket.version
            assert named == version or (default and named in (ANY, UNKNOWN)), "taken by another version"
        if self.transport.turns is None and any(one.ticket.alone for one in taken):
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

    _acts = {"R": _recover, "T": _take, "Z": _wait, "P": _predict, "S": _serve, "B": _begin, "E": _end}

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
        transport.serve(ANY, True, lambda version: False)
        # drops what nobody waits for
        assert transport.take(0, 99) == []
        assert not transport._queue and not transport._mutex.locked() and not transport.waiting()
        assert [list(held.tickets()) for held in transport._held] == [[]] * REPLICAS
        assert transport._again.tickets() == []
        flagged = {seat for seat, flag in enumerate(transport._seats._queued[:]) if flag}
        assert flagged <= self.ended, "a seat that is not queued says that it is"
        assert len(set(transport.left)) == len(transport.left), "a reply was left twice"
        assert not {uuid for uuid, answer in self.answers.items() if answer[:1] == b"r"} & self.killers


# ---- every kill


def scenario(tasks, max_attempts=2, versions=None):
    """Tasks wait: "t" is tame, "a" a suspect, "k" kills what predicts it, and on "e" the model raises; NAMED others."""
    world = World(max_attempts, versions)
    for seat, kind in enumerate(tasks):
        assert world.offer(seat, kind)
    return world


def live(tasks, programs, kills, eager, backwards, max_attempts, versions):
    """Replicas live one after the other, each for its number of steps.  Returns whether the last was cut off."""
    world = scenario(tasks, max_attempts, versions)
    cut = False
    for (id, acts), steps in zip(programs, kills, strict=False):
        cut = world.act(id, acts if id not in world.dead else "R" + acts, steps, backwards)
        if eager:
            world.look_all()
    world.finish(backwards)
    return cut


def kill_everywhere(tasks, programs, eager, backwards, max_attempts, kills=(), versions=None):
    """Kill each of some replicas after each of its steps: all that there are of such lives.  Returns how many."""
    count = 0
    for steps in itertools.count():
        count += 1
        cut = live(tasks, programs, (*kills, steps), eager, backwards, max_attempts, versions)
        if not cut:
            return count
        if len(kills) + 1 < len(programs):
            count += kill_everywhere(tasks, programs, eager, backwards, max_attempts, (*kills, steps), versions)


# R: recover the dead, T: take, Z: sleep until there is something to take, P: predict and publish, S: serve to the end
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


@pytest.mark.parametrize("third", [True, False], ids=["by default", "not by default"])
@pytest.mark.parametrize("programs", [[(1, "S"), (3, "RS")], [(3, "S"), (2, "TRPS")], [(1, "TP"), (2, "RS"), (3, "S")]])
@pytest.mark.parametrize("tasks", ["v", "w", "u", "tv", "vw", "va"])
def test_whatever_step_is_the_last_of_a_replica_where_there_are_two_versions(tasks, programs, third):
    versions = {1: (1, True), 2: (1, True), 3: (2, third)}
    for eager in (True, False):
        assert kill_everywhere(tasks, programs, eager, False, 2, versions=versions) > 10


@pytest.mark.parametrize("kind", ["t", "a", "v"])
def test_whatever_step_is_the_last_of_a_worker(kind):
    # of a queue of any depth; and what waits at the seat of another worker is answered
    last = 0
    for before, steps in itertools.product(range(SEATS), range(40)):
        # a replica takes what a dead thread has offered before the next worker is there, or after
        for acts in ("T", ""):
            world = scenario("t" * before, versions={3: (2, False)})
            cut = not world.offer(SEATS - 1, kind, steps=steps)
            world.act(1, acts)
            if cut:
                world.end_worker([SEATS - 1])
                world.offer(SEATS - 1)
            world.finish()
        last = max(last, steps if cut else 0)
    assert 8 < last < 39


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


# ---- any interleaving of single steps


class Parked(Killed):
    """The schedule is over, and it still waited."""


class Actor:
    """A process or a thread of one, and how many steps it lives."""

    def __init__(self, number, body, last=None, died=lambda: None):
        self.number = number
        self.body = body
        self.last = last
        self.died = died
        self.steps = 0
        self.done = False
        # what it waits for
        self.until = None
        # whose places it writes
        self.own = None
        self.gate = threading.Semaphore(0)

    @property
    def runnable(self):
        return not self.done and (self.until is None or self.until())


class Turns:
    """Actors in a thread each, of which one at a time runs.  Before each step and each look a plan says which.

    The plan has the number of an actor at some of the points where there is a choice; elsewhere who runs runs on.
    """

    def __init__(self, transport, plan):
        self._transport = transport
        self._plan = plan
        self._over = False
        self._finished = threading.Semaphore(0)
        self._errors = []
        self.actors = []
        self._runs = None
        # for each choice: between whom, who ran and could have run on, and what was to be touched
        self.points = []
        # (what, who, whether written)
        self.touched = set()

    def add(self, body, last=None, died=lambda: None):
        self.actors.append(Actor(len(self.actors), body, last, died))

    def run(self, threads):
        self._transport.turns = self
        try:
            for actor in self.actors:
                threads.submit(self._live, actor)
            self._pass()
            self._finished.acquire()
        finally:
            self._transport.turns = None
        if self._errors:
            raise self._errors[0]

    def step(self, where):
        self._turn(where, True)
        actor = self._runs
        if actor.last is not None and actor.steps >= actor.last:
            raise Cut
        actor.steps += 1

    def look(self, where):
        self._turn(where, False)

    def wait(self, until):
        if not until():
            actor = self._runs
            actor.until = until
            self._yield(self._choose(None))
            actor.until = None

    def _turn(self, where, written):
        actor = self._runs
        self.touched.add((where, actor.number, written))
        self._yield(self._choose(where))

    def _choose(self, where):
        """Who runs next; nobody when all have ended or wait for ever."""
        options = [actor for actor in self.actors if actor.runnable]
        if len(options) < 2:
            return options[0] if options else None
        chosen = goes_on = self._runs if self._runs in options else None
        point = len(self.points)
        self.points.append(([actor.number for actor in options], goes_on and goes_on.number, where))
        if point in self._plan:
            chosen = options[self._plan[point] % len(options)]
        return chosen or options[0]

    def _yield(self, to):
        actor = self._runs
        if to is not actor:
            transport = self._transport
            actor.own = transport._id, transport._own, transport._version, transport._default
            self._pass(to)
            actor.gate.acquire()
            self._runs = actor
            transport._id, transport._own, transport._version, transport._default = actor.own
        if self._over:
            raise Parked

    def _pass(self, to=None):
        to = to or self._choose(None)
        if to is None:
            self._over = True
            to = next((actor for actor in self.actors if not actor.done), None)
        if to is None:
            self._finished.release()
        else:
            to.gate.release()

    def _live(self, actor):
        actor.gate.acquire()
        self._runs = actor
        try:
            if not self._over:
                actor.body()
        except Parked:
            pass
        except Killed:
            actor.died()
        except BaseException as error:
            self._errors.append(error)
            self._over = True
        actor.done = True
        self._runs = None
        self._pass()


THREADS = ThreadPoolExecutor(8)


class Scene:
    """What happened before, and then at once: the programs of replicas by id, and of threads by seat.

    A replica may be dead, or live for so many steps.  The threads of tasks are at the first seats.
    """

    def __init__(self, tasks, replicas, threads=None, dead=None, lives=None, max_attempts=2, versions=None):
        self._tasks = tasks
        self._versions = versions
        self._replicas = replicas
        self._threads = threads or {}
        # of one that has died: its acts and its steps
        self._dead = dead
        self._lives = lives or {}
        self._max_attempts = max_attempts

    def begin(self):
        """Returns the world, and whether the dead one was cut off."""
        world = scenario(self._tasks, self._max_attempts, self._versions)
        return world, self._dead is not None and world.act(1, *self._dead)

    def play(self, plan, backwards=False):
        """Returns how the turns were taken; every promise is looked at in the end."""
        world, _ = self.begin()
        turns = Turns(world.transport, plan)
        for id, acts in self._replicas.items():
            turns.add(partial(self._replica, world, turns, id, acts), self._lives.get(id), partial(world.die, id))
        for seat, acts in self._threads.items():
            turns.add(partial(self._thread, world, turns, seat, acts))
        turns.run(THREADS)
        for id in world.asleep:
            world.start(id)
            assert not world.transport._tempting(), "nobody woke whom a task waits for"
        # before the threads come to look: what is answered must not be predicted again
        for id in world.alive if self._versions else world.alive[:1]:
            world.act(id, "RS")
        world.finish(backwards)
        return turns

    @staticmethod
    def _replica(world, turns, id, acts):
        world.start(id)
        for act in acts:
            if act == "D":
                turns.wait(lambda: world.dead)
            elif act == "Z":
                world.asleep.add(id)
                world._acts[act](world, id, False)
                world.asleep.discard(id)
            else:
                world._acts[act](world, id, False)

    @staticmethod
    def _thread(world, turns, seat, acts):
        woken = world.transport.woken
        for act in acts:
            if act == "W":
                while seat in world.waiting:
                    turns.wait(lambda: seat in woken)
                    world.look(seat)
            elif act == "N":
                # its worker was killed, and the next one starts
                world.end_worker([seat])
            elif act == "L":
                # its time is over
                if seat in world.waiting and not world.fetch(seat):
                    ticket = world.waiting[seat]
                    world.leave(seat)
                    world.transport.leave_digest(ticket, lambda ticket=ticket: digest(ticket))
            else:
                world.put(seat, act)


def every_schedule(scene, bound):
    """Play all schedules in which no more than so many times one that could run on does not.  Returns how many.

    To stop before something that no other touches in any of them is the same as to stop behind it.
    """
    count, touched = 0, {}
    ready, private = [({}, 0)], {}
    while ready:
        plan, used = ready.pop()
        turns = scene.play(plan)
        count += 1
        for where, who, written in turns.touched:
            whos = touched.setdefault(where, set())
            whos |= {who, None} if written else {who}
            if None in whos and len(whos) > 2:
                ready += private.pop(where, [])
        for point in range(max(plan, default=-1) + 1, len(turns.points)):
            options, goes_on, where = turns.points[point]
            cost = used + (goes_on is not None)
            if cost > bound:
                continue
            whos = touched.get(where, ())
            common = goes_on is None or (None in whos and len(whos) > 2)
            default = goes_on if goes_on is not None else options[0]
            for choice, option in enumerate(options):
                if option != default:
                    (ready if common else private.setdefault(where, [])).append((plan | {point: choice}, cost))
    return count


def every_death(tasks, acts, max_attempts=2):
    """After how many steps replica 1 can die, each time with another memory left behind."""
    seen = set()
    for steps in itertools.count():
        world, cut = Scene(tasks, {}, dead=(acts, steps), max_attempts=max_attempts).begin()
        state = world.transport.state()
        if not cut:
            return
        if state not in seen:
            seen.add(state)
            yield steps


@pytest.mark.parametrize("max_attempts", [1, 2])
@pytest.mark.parametrize(
    "tasks, replicas, threads, bound",
    [
        ("t", {3: "R", 2: "TP"}, {}, 3),
        ("t", {3: "R"}, {0: "LtW"}, 2),
        ("t", {3: "R", 2: "R"}, {}, 3),
        ("t", {3: "R", 2: "TP"}, {0: "LtW"}, 1),
        ("a", {3: "R", 2: "TP"}, {}, 1),
        ("tt", {3: "R", 2: "TP"}, {}, 1),
    ],
)
def test_whoever_runs_while_a_replica_is_recovered(tasks, replicas, threads, bound, max_attempts):
    count = 0
    for steps in every_death(tasks, "TP", max_attempts):
        count += every_schedule(Scene(tasks, replicas, threads, ("TP", steps), max_attempts=max_attempts), bound)

    assert count > 20


@pytest.mark.parametrize("max_attempts", [1, 2])
@pytest.mark.parametrize(
    "replicas, threads, bound",
    [
        ({1: "TP", 2: "DRTP"}, {}, 1),
        ({1: "TP", 2: "TP", 3: "DR"}, {}, 1),
        ({1: "TP", 3: "DR"}, {0: "W"}, 1),
        ({1: "TP", 3: "DR"}, {0: "LtW"}, 1),
        ({1: "TP", 3: "DR"}, {0: "NtW"}, 1),
    ],
)
def test_whoever_runs_while_a_replica_dies(replicas, threads, bound, max_attempts):
    count = 0
    for steps in every_death("t", "TP", max_attempts):
        count += every_schedule(Scene("t", replicas, threads, lives={1: steps}, max_attempts=max_attempts), bound)

    assert count > 20


def test_whoever_runs_while_nobody_dies():
    count = sum(
        every_schedule(Scene(tasks, replicas, threads), bound)
        for tasks, replicas, threads, bound in [
            ("t", {1: "TP"}, {0: "LtW"}, 2),
            ("t", {1: "TP", 2: "TP"}, {0: "WtW"}, 1),
            ("a", {1: "TP"}, {0: "LaW"}, 2),
            ("t", {1: "TP"}, {0: "NtW"}, 2),
            ("tt", {1: "TP"}, {0: "LtW", 1: "Nt"}, 1),
            ("tt", {1: "TPTP"}, {0: "WtW", 1: "NtW"}, 1),
        ]
    )

    assert count > 20


@pytest.mark.parametrize("third", [True, False], ids=["by default", "not by default"])
def test_whoever_runs_where_there_are_two_versions(third):
    versions = {1: (1, True), 2: (1, True), 3: (2, third)}
    count = sum(
        every_schedule(Scene(tasks, replicas, threads, versions=versions), bound)
        for tasks, replicas, threads, bound in [
            ("v", {1: "TP", 3: "TP"}, {}, 2),
            ("v", {1: "TP", 3: "TP"}, {0: "LvW"}, 1),
            ("v", {1: "TP", 3: "TPTP"}, {0: "WtW"}, 1),
            ("tv", {1: "TP", 3: "TP"}, {0: "LvW"}, 1),
            ("t", {1: "TPTP", 3: "TP"}, {0: "WuW"}, 1),
        ]
    )

    assert count > 20


@pytest.mark.parametrize("third", [True, False], ids=["by default", "not by default"])
def test_whoever_sleeps_while_tasks_come_and_go(third):
    versions = {1: (1, True), 2: (1, True), 3: (2, third)}
    count = sum(
        every_schedule(Scene("", replicas, threads, versions=versions), bound)
        for replicas, threads, bound in [
            ({3: "ZP"}, {0: "v"}, 3),
            ({1: "ZP"}, {0: "tLw"}, 2),
            ({1: "ZP", 3: "ZP"}, {0: "v"}, 1),
            ({1: "ZP", 3: "ZP"}, {0: "t"}, 2),
            # one that named a version leaves while another names it
            ({3: "ZPZP"}, {0: "vLt", 1: "v"}, 1),
            ({1: "ZP", 3: "ZP"}, {0: "vLt", 1: "v"}, 0),
            ({1: "ZPZP", 3: "ZP"}, {0: "vWwW"}, 1),
        ]
    )

    assert count > 20


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(
    tasks=st.text("ttkea", min_size=1, max_size=2),
    acts=st.tuples(
        st.sampled_from(["TP", "TPTP"]), st.sampled_from(["TP", "TRP", "DRTP"]), st.sampled_from(["DR", "DRTP"])
    ),
    threads=st.tuples(*[st.sampled_from(["W", "WtW", "LtW", "LkW", "LaW", "NtW"])] * 2),
    lives=st.tuples(*[st.none() | st.integers(0, 40)] * 2),
    plan=st.dictionaries(st.integers(0, 200), st.integers(0, 4), max_size=20),
    max_attempts=st.integers(1, 2),
    backwards=st.booleans(),
)
def test_whoever_runs_when(tasks, acts, threads, lives, plan, max_attempts, backwards):
    replicas = dict(enumerate(acts, start=1))
    seats = dict(enumerate(threads[: len(tasks)]))
    lives = dict(enumerate(lives, start=1))
    Scene(tasks, replicas, seats, lives=lives, max_attempts=max_attempts).play(plan, backwards)


# ---- any order of whole acts

STEPS = st.none() | st.integers(0, 25)
IDS = st.integers(1, REPLICAS)
PLACES_TO_SIT = st.integers(0, SEATS - 1)


class WholeActs(RuleBasedStateMachine):
    """Threads, workers and replicas in any order, each of which may die at any of its steps."""

    versions = None
    kinds = "ttekaa"

    def __init__(self):
        super().__init__()
        self.world = World(versions=self.versions)

    @precondition(lambda self: len(self.world.waiting) < SEATS)
    @rule(seat=PLACES_TO_SIT, number=st.integers(0, 11), rows=st.integers(1, 2), steps=STEPS)
    def offer(self, seat, number, rows, steps):
        if seat in self.world.waiting:
            return
        kind = self.kinds[number % len(self.kinds)]
        self.worker_follows(seat)
        if not self.world.offer(seat, kind, rows, steps):
            self.worker_dies(seat)

    @rule(seat=PLACES_TO_SIT)
    def worker_follows(self, seat):
        if seat in self.world.ended:
            self.world.end_worker([seat, seat ^ 1])
            self.world.ended -= {seat, seat ^ 1}

    @rule(seat=PLACES_TO_SIT)
    def worker_dies(self, seat):
        # two seats are one worker's: nobody waits there now, and the next worker may take its time
        for own in (seat, seat ^ 1):
            self.world.waiting.pop(own, None)
        self.world.ended |= {seat, seat ^ 1}

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
    def no_seat_is_queued_often(self):
        assert len(self.world.transport._queue) <= 2 * SEATS

    @invariant()
    def who_waits_is_counted(self):
        rows = sum(ticket.rows for ticket in self.world.waiting.values())
        assert self.world.transport.waiting_rows() >= rows

    def teardown(self):
        # the next workers are not there: what others offer is found without them
        for seat in self.world.ended:
            self.world.transport._seats.leave(seat)
        self.world.finish()
        self.world.end_worker(sorted(self.world.ended))
        self.world.ended.clear()
        self.world.check()


class WholeActsOfVersions(WholeActs):
    """The same where the replicas do not all serve the same."""

    versions = {1: (1, True), 2: (2, True), 3: (3, False)}
    kinds = "tvvwxeka"


TestAnyOrderOfActs = WholeActs.TestCase
TestAnyOrderOfActs.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
TestAnyOrderOfActsOfVersions = WholeActsOfVersions.TestCase
TestAnyOrderOfActsOfVersions.settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
