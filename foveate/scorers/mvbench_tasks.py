"""How each of MVBench's twenty tasks makes questions of what is known about a video.

Every task takes a question that a still image could answer and gives it a twist in time. A maker yields drafts: the
right answer, and wrong ones in the order in which they are drawn, those of the same video first, for they cannot be
told from the right one by what is to be seen, only by when. What is ambiguous (an action that happens twice, an object
whose name two have) is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, permutations
from random import Random

from .mvbench_annotations import Action, Annotated, Thing

MOVES = ("stop", "move forward", "turn left", "turn right")
DIRECTIONS = ("to the left", "to the right", "upwards", "downwards")
PARTS = ("At the beginning of the video.", "In the middle of the video.", "At the end of the video.")
WHOLE = "Throughout the whole video."
#: An action that takes this share of a video happens throughout.
MOST = 0.8
NO_CHANGE, STILL = "It does not change.", "it does not move"


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before its options are drawn.

    Attributes:
        video: it is about.
        question, answer: as they are written.
        wrong: possible wrong options, the best first, a tier of equally good ones each.
        part: (start, end) in seconds of what is shown; None: all.
        closed: the options are always the same, so that the answers must be balanced.
    """

    video: str
    question: str
    answer: str
    wrong: tuple[tuple[str, ...], ...]
    part: tuple[float, float] | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """All videos: where wrong options come from that the own video does not have."""

    videos: Sequence[Annotated]

    def others(self, video: Annotated, of: Callable[[Annotated], Iterator[str]]) -> tuple[str, ...]:
        """What the other videos have of something, and this one has not."""
        own = set(of(video))
        return tuple(dict.fromkeys(x for other in self.videos if other is not video for x in of(other) if x not in own))


Maker = Callable[[Annotated, Pool, Random], Iterator[Draft]]


def _labels(video: Annotated) -> Iterator[str]:
    return (action.label for action in video.actions)


def _once(video: Annotated) -> list[Action]:
    """Actions in time whose label occurs once."""
    counts = Counter(_labels(video))
    return sorted((a for a in video.actions if counts[a.label] == 1), key=lambda a: a.start)


def _named(video: Annotated) -> list[Thing]:
    """Objects whose name no other has."""
    counts = Counter(thing.name for thing in video.objects)
    return [thing for thing in video.objects if counts[thing.name] == 1]


def _following(video: Annotated) -> Iterator[tuple[Action, Action]]:
    """Actions that follow on each other without overlap, the first of them unmistakable."""
    once = {action.label for action in _once(video)}
    starts = Counter(action.start for action in video.actions)
    for first, then in pairwise(sorted(video.actions, key=lambda a: a.start)):
        if first.end <= then.start and first.label in once and starts[then.start] == 1:
            yield first, then


def action_sequence(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for first, then in _following(video):
        own = tuple(label for label in dict.fromkeys(_labels(video)) if label != first.label)
        part = (first.start, then.end)
        yield Draft(
            video.video,
            f"What happens right after this: {first.label}?",
            then.label,
            (own, pool.others(video, _labels)),
            part,
        )


def action_prediction(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for first, then in _following(video):
        own = tuple(dict.fromkeys(_labels(video)))
        yield Draft(
            video.video,
            "What will happen next?",
            then.label,
            (own, pool.others(video, _labels)),
            (first.start, then.start),
        )


def action_antonym(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    seen = set(_labels(video))
    for action in video.actions:
        if action.antonym and action.antonym not in seen:
            yield Draft(video.video, "Which of these happens?", action.label, ((action.antonym,), ("not sure",)))


def fine_grained_action(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    seen = set(_labels(video))
    others = [action for other in pool.videos for action in other.actions if action.label not in seen]
    for action in _once(video):
        told = {action.verb, action.object} - {""}
        like = [a.label for a in others if a.verb in told or a.object in told]
        similar = tuple(label for label in action.similar if label not in seen)
        if similar or like:
            yield Draft(
                video.video,
                "Which of these actions is seen in the video?",
                action.label,
                (similar, tuple(dict.fromkeys(like)), pool.others(video, _labels)),
            )


def unexpected_action(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    def strange(of: Annotated) -> Iterator[str]:
        return (action.label for action in of.actions if action.unexpected)

    found = list(strange(video))
    for action in video.actions:
        if action.unexpected and len(found) == 1:
            yield Draft(
                video.video,
                "Which unexpected thing happens in the video?",
                action.label,
                (action.similar, pool.others(video, strange)),
            )


def _moves_at(thing: Thing, video: Annotated, end: bool) -> bool:
    """Whether an object moves when the video ends or begins."""
    return any(move.end >= video.duration if end else move.start <= 0 for move in thing.moves)


def object_existence(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for name in dict.fromkeys(thing.name for thing in video.objects):
        own = [thing for thing in video.objects if thing.name == name]
        if not any(thing.moves for thing in own):
            continue
        for end in (False, True):
            answer = "yes" if any(_moves_at(thing, video, end) for thing in own) else "no"
            question = f"Is a {name} moving when the video {'ends' if end else 'begins'}?"
            wrong = ("no" if answer == "yes" else "yes",)
            yield Draft(video.video, question, answer, (wrong, ("not sure",)), closed=True)


def object_interaction(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    def objects(of: Annotated) -> Iterator[str]:
        yield from (action.object for action in of.actions if action.object)
        yield from (thing.name for thing in of.objects)

    for action in video.actions:
        if not (action.verb and action.object):
            continue
        meanwhile = [
            a for a in video.actions if a.verb == action.verb and a.start < action.end and action.start < a.end
        ]
        if len(meanwhile) == 1:
            own = tuple(dict.fromkeys(objects(video)))
            yield Draft(
                video.video,
                f"Which object does the person {action.verb}?",
                action.object,
                (own, pool.others(video, objects)),
                (action.start, action.end),
            )


def object_shuffle(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    def places(of: Annotated) -> Iterator[str]:
        return (place for thing in of.objects for place in thing.places)

    for thing in _named(video):
        if len(set(thing.places)) > 1:
            question = f"Where is the {thing.name} when the video ends?"
            wrong = (thing.places, tuple(dict.fromkeys(places(video))), pool.others(video, places))
            yield Draft(video.video, question, thing.places[-1], wrong)


def moving_direction(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    def directions(of: Annotated) -> Iterator[str]:
        return (move.direction for thing in of.objects for move in thing.moves if move.direction)

    for thing in _named(video):
        own = {move.direction for move in thing.moves}
        if len(own) == 1 and "" not in own:
            wrong = (tuple(dict.fromkeys(directions(video))), (STILL,), pool.others(video, directions), DIRECTIONS)
            yield Draft(video.video, f"In which direction does the {thing.name} move?", own.pop(), wrong)


def action_localization(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    third = video.duration / 3
    for action in _once(video):
        if action.end - action.start >= MOST * video.duration:
            answer = WHOLE
        else:
            inside = [part for part in range(3) if part * third <= action.start and action.end <= (part + 1) * third]
            if not inside:
                continue
            answer = PARTS[inside[0]]
        question = f"During which part of the video does this happen: {action.label}?"
        yield Draft(video.video, question, answer, ((*PARTS, WHOLE),), (0.0, video.duration), closed=True)


def scene_transition(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    if len(video.scenes) < 2:
        return

    def told(scenes: Sequence[str]) -> str:
        return f"From {' to '.join(scenes)}."

    orders = tuple(told(order) for order in islice(permutations(video.scenes), 24))
    strange = pool.others(video, lambda of: iter(of.scenes))
    ends = tuple(told((*video.scenes[:-1], scene)) for scene in strange)
    begins = tuple(told((scene, *video.scenes[1:])) for scene in strange)
    yield Draft(video.video, "How do the scenes of the video change?", told(video.scenes), (orders, ends + begins))


def action_count(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for label, count in Counter(_labels(video)).items():
        if count > 1:
            yield Draft(video.video, f"How often does this happen: {label}?", str(count), _numbers(count, 1, random))


def moving_count(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    movers = sum(bool(thing.moves) for thing in video.objects)
    if not movers:
        return
    yield Draft(video.video, "How many objects move in the video?", str(movers), _numbers(movers, 0, random))
    at_end = sum(_moves_at(thing, video, True) for thing in video.objects)
    question = "How many objects are moving when the video ends?"
    yield Draft(video.video, question, str(at_end), _numbers(at_end, 0, random))


def _numbers(right: int, least: int, random: Random) -> tuple[tuple[str, ...], ...]:
    """Numbers around the right one, which is the smallest of four as often as the largest."""
    first = max(least, right - random.randrange(4))
    return (tuple(str(number) for number in range(first, first + 4)),)


def moving_attribute(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    moving = sorted((thing for thing in video.objects if thing.moves), key=lambda t: min(m.start for m in t.moves))
    if not moving:
        return
    starts = [min(move.start for move in thing.moves) for thing in moving]
    if len(starts) > 1 and starts[0] == starts[1]:
        return
    which = "moves" if len(moving) == 1 else "moves first"
    for name, value in moving[0].attributes.items():

        def values(of: Annotated, name: str = name) -> Iterator[str]:
            return (thing.attributes[name] for thing in of.objects if name in thing.attributes)

        wrong = (tuple(dict.fromkeys(values(video))), pool.others(video, values))
        yield Draft(video.video, f"What is the {name} of the object that {which}?", value, wrong)


def state_change(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    def changes(of: Annotated, name: str | None = None) -> Iterator[str]:
        own = (thing.states for thing in of.objects if name in (None, thing.name))
        return (f"From {states[0]} to {states[-1]}." for states in own if len(set(states)) > 1)

    for thing in _named(video):
        if not thing.states:
            continue
        first, last = thing.states[0], thing.states[-1]
        changed = len(set(thing.states)) > 1
        if changed and first == last:
            continue
        answer = f"From {first} to {last}." if changed else NO_CHANGE
        same = pool.others(video, lambda of, name=thing.name: changes(of, name))
        reverse = (f"From {last} to {first}.",) if changed else ()
        wrong = (reverse, (NO_CHANGE,), same, pool.others(video, changes))
        yield Draft(video.video, f"How does the {thing.name} change?", answer, wrong)


def fine_grained_pose(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    if len(video.poses) == 1:
        wrong = (pool.others(video, lambda of: iter(of.poses)),)
        yield Draft(video.video, "Which pose does the person take?", video.poses[0], wrong)


def character_order(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    if len(set(video.characters)) > 1:
        orders = [", ".join(order) for order in islice(permutations(video.characters), 120)]
        yield Draft(
            video.video,
            "In which order do the characters appear?",
            ", ".join(video.characters),
            (tuple(dict.fromkeys(orders)),),
        )


def egocentric_navigation(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    if video.route is not None:
        moves = tuple(dict.fromkeys((*MOVES, *(v.route.next for v in pool.videos if v.route))))
        question = f"The video is seen by somebody who follows this: {video.route.instruction}. Which move comes next?"
        yield Draft(video.video, question, video.route.next, (moves,), closed=True)


def episodic_reasoning(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for episode in video.episodes:
        own = tuple(other.answer for other in video.episodes if other is not episode)
        wrong = (episode.wrong, own, pool.others(video, lambda of: (e.answer for e in of.episodes)))
        yield Draft(video.video, episode.question, episode.answer, wrong, (episode.start, episode.end))


def counterfactual_inference(video: Annotated, pool: Pool, random: Random) -> Iterator[Draft]:
    for case in video.counterfactuals:
        true = {other.happens for other in video.counterfactuals if other.without == case.without}
        if len(true) == 1:
            wrong = (case.instead, pool.others(video, lambda of: (c.happens for c in of.counterfactuals)))
            yield Draft(video.video, f"What would happen without {case.without}?", case.happens, wrong)


MAKERS: dict[str, Maker] = {
    "Action Sequence": action_sequence,
    "Action Prediction": action_prediction,
    "Action Antonym": action_antonym,
    "Fine-grained Action": fine_grained_action,
    "Unexpected Action": unexpected_action,
    "Object Existence": object_existence,
    "Object Interaction": object_interaction,
    "Object Shuffle": object_shuffle,
    "Moving Direction": moving_direction,
    "Action Localization": action_localization,
    "Scene Transition": scene_transition,
    "Action Count": action_count,
    "Moving Count": moving_count,
    "Moving Attribute": moving_attribute,
    "State Change": state_change,
    "Fine-grained Pose": fine_grained_pose,
    "Character Order": character_order,
    "Egocentric Navigation": egocentric_navigation,
    "Episodic Reasoning": episodic_reasoning,
    "Counterfactual Inference": counterfactual_inference,
}
