"""Words as the search sees them: spelling, stems, words that say nothing, and words that mean the same to users."""

from __future__ import annotations

import functools
import re

#: Words that say nothing about what is looked for.
_STOP = """
a about after again all also although am an and another any anything are as at be been before being best better both
but by can cannot could did do does doing done each either else enough every for from further get give given gives
go good had has have having here how i if in instead into is it its itself just kind know known less let like lot
made make makes making many may me mine more most much must my need needed needs neither no nor not of off often on
one ones only onto or other others our out over own per please quite rather really same say says should show shows
so some something such system than that the their them then there these they thing things this those through thus to
too use used useful user users uses using very via want wanted wants was way we well were what when where whether
which while who whose why will with within without would yet you your
"""
STOP = frozenset(_STOP.split())

#: Several words that are one notion: what a text must hold for the pattern to be tried, and what it is read as.
PHRASES = [
    (marks.split("|"), re.compile(pattern), to)
    for marks, pattern, to in (
        ("language model", r"\b(large )?language models?\b", r"\g<0> llm"),
        ("chatbot|chat bot|llms", r"\bchat ?bots?\b|\bllms\b", "llm"),
        (
            "without |no |zero ",
            r"\b(without|no|zero) (any |more |further |new )?(re|fine|pre)?-?(training|tuning)( again)?\b",
            "trainingfree",
        ),
        ("ing-free|ing free", r"\b(training|tuning)[- ]free\b", "trainingfree"),
        ("nothing is", r"\bnothing is (learned|trained)\b", "trainingfree"),
        ("in place of|instead of", r"\b(in place of|instead of)\b", "replace"),
        (" grow", r"\b(does not|doesn't|do not|don't|not|never|without) grow(ing|s)?\b", "constant"),
        ("generation", r"\b(text|story|code|prose)[- ]generation\b", "language llm"),
        ("generat", r"\bgenerat(e|es|ing) (long |longer )?(texts?|stories|code)\b", "language llm"),
        ("white", r"\bblack[- ]and[- ]white\b", "grayscale"),
        ("grey|gray", r"\bgr[ae]y(scale)?\b", "grayscale"),
        ("first|head", r"\bfirst[- ]person\b|\bhead[- ]mounted\b", "egocentric"),
        ("series", r"\btime[- ]series\b", "time series timeseries"),
        ("many ", r"\bmany (sensors|variables|channels|series)\b", r"\1 multivariate"),
        ("event", r"\bevent[- ](based )?(cameras?|vision)\b", r"\g<0> dvs"),
        ("real", r"\breal[- ]time\b", "realtime"),
        ("state", r"\bstate[- ]spaces?\b", r"\g<0> ssm"),
        ("infra", r"\binfra[- ]red\b", "infrared"),
        ("two|2", r"\b(two|2)[- ](d|dimensional|dimensions)\b", "2d"),
        ("three|3", r"\b(three|3)[- ](d|dimensional|dimensions)\b", "3d"),
    )
]

#: Words that users take for one another. Each line is one notion.
SYNONYMS = """
eeg electroencephalography electroencephalogram brain
ecg ekg electrocardiogram heartbeat heart medical signal
fmri voxel brain
fast quick speed rapid accelerate latency efficient realtime
cheap inexpensive efficient budget cost lightweight light small tiny simple
long lengthy unlimited infinite endless hour minute book
color colorize coloring
phone mobile smartphone handheld device
device embedded edge microcontroller hardware
gpu worker device distributed multi-gpu machine
video clip movie film footage recording
image picture photo photograph
llm language text gpt
text prompt sentence word description
predict forecast anticipate future extrapolate next
missing gap impute imputation interpolate interpolation fill
anomaly anomalous outlier fault unusual novelty abnormal defect
emotion expression affective valence mood feeling
face facial
person people human pedestrian actor
action activity gesture behavior
move movement motion
animate animation
joint skeleton pose limb body
explain explanation explainability interpret interpretability interpretable
test evaluate evaluation benchmark score measure assess audit
hallucination hallucinate invent absent
forget forgetting catastrophic
continual incremental lifelong later
thermal infrared
sound audio hear heard noise acoustic
link edge interaction
dynamic temporal
drag stroke sketch
tumor cancer lesion glioma
mri ct radiology
slide pathology histology tissue biopsy
hospital medical patient clinical
gaze look eye fixation scanpath
flicker jitter flickering
recall remember memorize memory retrieve
retrieve find search
find localize locate detect
stream streaming online live realtime
snn spiking spike neuromorphic
grow growth growing
fixed constant
energy power battery
stop exit halt early
near nearby neighbor neighborhood neighboring around local surrounding
split shard partition cut
cycle period season seasonal periodic periodicity daily weekly
sensor measurement reading variable variate channel signal series
old earlier past previous
begin start end boundary
recurrent rnn recurrence
cnn convolution convolutional
vit transformer
ssm mamba
classify classification recognize recognition categorize
segment segmentation mask
generate generation synthesize synthesis create
edit editing change replace swap modify
combine fuse fusion merge join
compress compression reduce prune pruning
bottleneck profile profiler profiling
sparse sparsity skip
graph network node
street driving autonomous car
weather climate rain traffic radar
finance stock price business sales
ear music speech
ask question answer
"""

_IRREGULAR = {
    "seen": "see",
    "found": "find",
    "heard": "hear",
    "forgotten": "forget",
    "chosen": "choose",
    "written": "write",
    "explanation": "explain",
    "recognition": "recognize",
    "movement": "move",
    "indices": "index",
    "matrices": "matrix",
    "people": "person",
    "children": "child",
    "feet": "foot",
    "frozen": "freeze",
}
#: Words that end like a plural and are none.
_WHOLE = ("series", "bias", "gas", "news", "lens")
_BRITISH = (
    (r"isation(s?)$", r"ization\1"),
    (r"([a-z]{3,})is(e|es|ed|er|ers|ing)$", r"\1iz\2"),
    (r"([a-z]{2,})our(s|ed|ing|less|ite|ful|hood|hoods|ly|al)?$", r"\1or\2"),
    (r"ys(e|es|ed|ing)$", r"yz\1"),
    (r"(cent|met|fib|lit)re(s?)$", r"\1er\2"),
    (r"grey", "gray"),
    (r"([aeiou]l)l(ed|ing|er|ers)$", r"\1\2"),
    (r"haem", "hem"),
)
_MAYBE_BRITISH = re.compile("is|our|ys|re|ll|grey|haem")
_CHUNK = re.compile(r"[a-z0-9]+(?:[-_/'][a-z0-9]+)*")
_JOINT = re.compile(r"[-_/']")
#: Words that the rule for British spelling must not touch.
_KEPT = "noise noises rise rises raise raised wise likewise precise exercise exercises four hour hours your"
_KEEP = frozenset(_KEPT.split())
_SUFFIXES = ("ization", "ing", "edly", "ed", "er", "ers", "ion", "ive", "ment", "ably", "able", "ness", "ities", "ity")


@functools.cache
def spelling(word: str) -> str:
    """A word in American spelling, so that both find each other."""
    if word in _KEEP or "our" in word[:3] or not _MAYBE_BRITISH.search(word):
        return word
    for pattern, to in _BRITISH:
        word = re.sub(pattern, to, word)
    return word


@functools.cache
def stem(word: str) -> str:
    """What is common to the forms of a word: predict, predicts, predicted, prediction, predictor."""
    word = spelling(_IRREGULAR.get(word, word))
    word = _IRREGULAR.get(word, word)
    if len(word) < 4 or word in _WHOLE or any(c.isdigit() for c in word):
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith(("sses", "xes", "ches", "shes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for suffix in _SUFFIXES:
        root = word.removesuffix(suffix)
        if root != word and len(root) >= (4 if suffix == "ment" else 3) and re.search("[aeiouy]", root):
            if suffix == "ion" and root[-1] not in "ts":
                continue
            doubled = suffix in ("ing", "ed", "er") and root[-1] == root[-2] and root[-1] not in "lsze"
            word = root[:-1] if doubled else root
            if suffix == "ization":
                word += "iz"
            break
    if word.endswith("tor") and len(word) > 5:
        word = word[:-2]
    if word.endswith("ificat"):
        word = word[:-4] + "y"
    word = word[:-1] if word.endswith("e") and len(word) > 3 else word
    word = word[:-2] if word.endswith("at") and len(word) > 5 else word
    return word[:-1] + "i" if word.endswith("y") else word


def words(text: str) -> list[str]:
    """The words of a text in order, lower case; parts of compounds and the compound, and phrases, each on its own."""
    text = text.lower()
    for marks, pattern, to in PHRASES:
        if any(mark in text for mark in marks):
            text = pattern.sub(to, text)
    found = []
    for chunk in _CHUNK.findall(text):
        if chunk.isalnum():
            found.append(chunk)
        else:
            parts = _JOINT.split(chunk)
            found += [*parts, "".join(parts)]
    return found


@functools.cache
def _notions() -> dict[str, set[str]]:
    table: dict[str, set[str]] = {}
    for line in SYNONYMS.strip().splitlines():
        notion = {stem(word) for word in line.split()}
        for word in notion:
            table.setdefault(word, set()).update(notion - {word})
    return table


@functools.cache
def synonyms(word: str) -> frozenset[str]:
    """Stems that mean the same to users as this stem."""
    return frozenset(_notions().get(word, ()))
