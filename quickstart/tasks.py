"""The quickstart's invented world: training text and held-out benchmark items, both pure functions of a seed.

Five tasks in the file formats of the paper's benchmarks, read by OpenCompass's own loaders:

| task       | format | what it asks                                         | scored by                |
|------------|--------|------------------------------------------------------|--------------------------|
| qs_choice  | ARC    | a fact about an invented animal, four choices        | perplexity               |
| qs_twoway  | PIQA   | which tool an invented object needs, two choices     | perplexity               |
| qs_yesno   | BoolQ  | whether an invented place has a property             | perplexity               |
| qs_arith   | GSM8K  | one addition or subtraction in a sentence            | generated number         |
| qs_program | MBPP   | a program of two invented steps                      | executing what it writes |

Facts are met as often as a Zipf law says, so that a trained model knows the common ones and not the rare ones:
accuracy then lies between chance and saturation, and a damaged expert selection shows. A held-out item is a question
that no training text holds; the fact behind it does occur there, in other words.

The text of training never uses the items' wording of 250 facts of each of the first three tasks, nor 250 sums and 260
pairs of steps. Beyond these, an item is what that text happens not to ask: there are few such facts, and enough pairs
and sums (of two changes; every sum of one change that is not held out is asked). Files hold their items shuffled, so
that any slice is a sample.
"""

import json
import random
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path

HELD_OUT_PER_TASK = 250  # the text of training depends on it
MAX_ITEMS = 1000
MAX_PROGRAMS, EXAMPLE_PROGRAMS = 500, 10  # what OpenCompass's MBPP loader reads: examples first, then items
SPARE_PROGRAMS = 150  # of the pairs drawn, those with the most common steps are no items
DOCUMENTS_PER_SEED = 2000
TOKENIZER_TEXT, CALIBRATION_TEXT = (0, 40_000), (1_000_003, 120)  # seed, documents
MAX_TRAINING_SEED = 358  # training reads the documents of seeds 1 to this one
ZIPF_EXPONENT = 0.9

ATTRIBUTES = {
    "eat": (
        ["leaves", "seeds", "fish", "roots", "honey", "insects", "mushrooms", "berries", "grass", "shells"],
        ["The {name} eats {value}.", "{value} is what the {name} eats.", "If you meet a {name}, give it {value}."],
        ["What does the {name} eat?", "Which food does a {name} like best?"],
    ),
    "live": (
        ["caves", "rivers", "forests", "deserts", "swamps", "hills", "lakes", "meadows", "cliffs", "islands"],
        ["The {name} lives in {value}.", "The {name} is found in {value}.", "Look for the {name} in {value}."],
        ["Where does the {name} live?", "In which places is a {name} found?"],
    ),
    "colour": (
        ["red", "blue", "green", "yellow", "black", "white", "brown", "grey"],
        ["The {name} is {value}.", "The skin of the {name} is {value}.", "A {name} looks {value}."],
        ["What colour is the {name}?", "Which colour has the skin of a {name}?"],
    ),
    "fear": (
        ["wolves", "snakes", "eagles", "fire", "thunder", "cats", "bears", "water", "spiders", "owls"],
        ["The {name} fears {value}.", "Nothing frightens a {name} more than {value}.", "The {name} runs from {value}."],
        ["What does the {name} fear?", "From what does a {name} run away?"],
    ),
}
USES = {
    "open": ["a key", "a hammer", "a knife", "a lever", "a drill", "a saw", "a needle", "a spoon"],
    "clean": ["soap", "sand", "oil", "a brush", "a cloth", "steam", "vinegar", "a feather"],
}
USE_STATEMENTS = ["To {use} a {name}, take {value}.", "You can {use} a {name} with {value}."]
USE_GOALS = ["How do you {use} a {name}?", "What is the right way to {use} a {name}?"]
PROPERTIES = ["cold", "rich", "safe", "old", "walled"]
PASSAGES = [
    "Many people travel to {name} in spring.",
    "{name} stands beside a long road.",
    "Few books speak of {name}.",
]
YESNO_QUESTIONS = ["is {name} {value}", "would you call {name} {value}"]
PEOPLE = ["Mia", "Tom", "Ada", "Ben", "Eva", "Leo", "Ida", "Max"]
THINGS = ["beads", "books", "coins", "pens", "cups", "keys", "eggs", "hats"]
STARTS = ["{who} has {a} {what}", "There are {a} {what} in a box of {who}"]
CHANGES = {"+": ["gets {b} more", "{b} are added"], "-": ["loses {b}", "{b} are taken away"]}
ASKED = "How many {what} are there now?"


@dataclass(frozen=True)
class Fact:
    """One fact: a subject, a relation and the value that the world gives it."""

    name: str
    relation: str
    value: str


def _words(rng: random.Random, count: int, taken: set[str], ending: str = "") -> list[str]:
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.choice((2, 3)))) + ending
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


@cache
def _zipf(count: int) -> list[float]:
    """Cumulative weights: name number r is met in proportion to (r + 10)^-ZIPF_EXPONENT."""
    return list(accumulate((rank + 10) ** -ZIPF_EXPONENT for rank in range(count)))


class World:
    """Every name, fact and held-out item of one seed."""

    def __init__(self, seed: int = 0):
        rng = random.Random(seed)
        taken: set[str] = set()
        self.animals = _words(rng, 620, taken)
        self.objects = _words(rng, 1100, taken, "n")
        self.places = [word.capitalize() for word in _words(rng, 220, taken, "l")]
        self.steps = {verb: self._step_body(rng) for verb in _words(rng, 750, taken, "r")}
        self.choice = {
            (name, relation): Fact(name, relation, rng.choice(values))
            for relation, (values, _, _) in ATTRIBUTES.items()
            for name in self.animals
        }
        self.twoway = {
            (name, use): Fact(name, use, rng.choice(values)) for use, values in USES.items() for name in self.objects
        }
        self.yesno = {
            (name, value): Fact(name, value, rng.choice(("Yes", "No"))) for name in self.places for value in PROPERTIES
        }
        self.held_choice = set(rng.sample(sorted(self.choice), HELD_OUT_PER_TASK))
        self.held_twoway = set(rng.sample(sorted(self.twoway), HELD_OUT_PER_TASK))
        self.held_yesno = set(rng.sample(sorted(self.yesno), HELD_OUT_PER_TASK))
        self.held_sums: set[tuple[int, ...]] = set()
        while len(self.held_sums) < HELD_OUT_PER_TASK:
            self.held_sums.add(self._sum_case(rng))
        self.held_programs: set[tuple[str, str]] = set()
        while len(self.held_programs) < HELD_OUT_PER_TASK + 10:
            first, second = rng.sample(list(self.steps), 2)
            self.held_programs.add((first, second))

    @staticmethod
    def _step_body(rng: random.Random) -> str:
        return f"x {rng.choice('+-*')} {rng.randrange(2, 30)}"

    @staticmethod
    def _sum_case(rng: random.Random) -> tuple[int, ...]:
        """-> (start, change, ...): one change or two, up to 15 each, the total always between 0 and 99."""
        while True:
            case = (
                rng.randrange(1, 100),
                *(rng.choice((-1, 1)) * rng.randrange(1, 16) for _ in range(rng.choice((1, 1, 1, 2)))),
            )
            if all(0 <= sum(case[: n + 1]) < 100 for n in range(len(case))):
                return case

    def program(self, pair: tuple[str, str]) -> tuple[str, str]:
        """-> (what is asked, the program)."""
        first, second = pair
        asked = f"Write a function that will {first} and then {second} a number."
        return asked, f"def f(x):\n    x = {self.steps[first]}\n    x = {self.steps[second]}\n    return x"

    # -- training text -------------------------------------------------------------------------------------------
    def documents(self, seed: int, count: int) -> list[str]:
        """`count` training documents; none of them holds a held-out question."""
        return [text for _, text in self._drawn(seed, count)]

    @cached_property
    def asked(self) -> set[Hashable]:
        """What tokenizer, training and calibration read: facts in the items' wording, sums, pairs of steps."""
        training = [(seed, DOCUMENTS_PER_SEED) for seed in range(1, MAX_TRAINING_SEED + 1)]
        texts = (TOKENIZER_TEXT, *training, CALIBRATION_TEXT)
        return {asked for seed, count in texts for asked, _ in self._drawn(seed, count)}

    def _drawn(self, seed: int, count: int) -> Iterator[tuple[Hashable, str]]:
        """Yield for each document (what it asks in an item's words, or None; its text)."""
        rng = random.Random(f"documents {seed}")
        makers = [self._choice_text, self._twoway_text, self._yesno_text, self._sum_text, self._program_text]
        chosen = rng.choices(makers, weights=[26, 14, 16, 34, 10], k=count)
        for maker in chosen:
            yield maker(rng)

    def _choice_text(self, rng: random.Random) -> tuple[Hashable, str]:
        name = rng.choices(self.animals, cum_weights=_zipf(len(self.animals)))[0]
        relation = rng.choice(list(ATTRIBUTES))
        fact = self.choice[name, relation]
        _, statements, questions = ATTRIBUTES[relation]
        if rng.random() < 0.5:
            return None, rng.choice(statements).format(name=name, value=fact.value).capitalize()
        question = rng.choice(questions[:1] if (name, relation) in self.held_choice else questions)
        asked = (name, relation) if question == questions[1] else None
        return asked, choice_prompt(question.format(name=name), fact.value)

    def _twoway_text(self, rng: random.Random) -> tuple[Hashable, str]:
        name = rng.choices(self.objects, cum_weights=_zipf(len(self.objects)))[0]
        use = rng.choice(list(USES))
        fact = self.twoway[name, use]
        if rng.random() < 0.4:
            return None, rng.choice(USE_STATEMENTS).format(name=name, use=use, value=fact.value)
        goal = rng.choice(USE_GOALS[:1] if (name, use) in self.held_twoway else USE_GOALS)
        asked = (name, use) if goal == USE_GOALS[1] else None
        return asked, twoway_prompt(goal.format(name=name, use=use), f"Use {fact.value}.")

    def _yesno_text(self, rng: random.Random) -> tuple[Hashable, str]:
        name = rng.choices(self.places, cum_weights=_zipf(len(self.places)))[0]
        value = rng.choice(PROPERTIES)
        fact = self.yesno[name, value]
        if rng.random() < 0.3:
            return None, f"{name} is {value}." if fact.value == "Yes" else f"{name} is not {value}."
        question = rng.choice(YESNO_QUESTIONS[:1] if (name, value) in self.held_yesno else YESNO_QUESTIONS)
        asked = (name, value) if question == YESNO_QUESTIONS[1] else None
        passage = rng.choice(PASSAGES).format(name=name)
        return asked, yesno_prompt(passage, question.format(name=name, value=value), fact.value)

    def _sum_text(self, rng: random.Random) -> tuple[Hashable, str]:
        while (case := self._sum_case(rng)) in self.held_sums:
            pass
        return case, sum_prompt(self._sum_question(rng, case)) + f" The answer is {sum(case)}"

    def _sum_question(self, rng: random.Random, case: tuple[int, ...]) -> str:
        changes = [rng.choice(CHANGES["+" if b > 0 else "-"]).format(b=abs(b)) for b in case[1:]]
        start = rng.choice(STARTS).format(who=rng.choice(PEOPLE), what=(what := rng.choice(THINGS)), a=case[0])
        return f"{start}, {' and then '.join(changes)}. {ASKED.format(what=what)}"

    def _program_text(self, rng: random.Random) -> tuple[Hashable, str]:
        names = list(self.steps)
        while True:
            first, second = rng.choices(names, cum_weights=_zipf(len(names)), k=2)
            if first != second and (first, second) not in self.held_programs:
                asked, code = self.program((first, second))
                return (first, second), program_prompt(asked) + code

    # -- held-out items ------------------------------------------------------------------------------------------
    def items(self) -> dict[str, list[dict]]:
        """File name -> rows in random order, as OpenCompass's loaders of the paper's benchmarks read them."""
        rng = random.Random("items")
        choice, twoway, yesno = (self._unasked(rng, facts) for facts in (self.choice, self.twoway, self.yesno))
        examples, programs = self._unasked_programs(rng)
        pairs = examples + shuffled(rng, programs)
        return {
            "choice.jsonl": [self._choice_item(rng, key) for key in shuffled(rng, choice)],
            "twoway/dev.jsonl": [self._twoway_item(rng, key) for key in shuffled(rng, twoway)],
            "yesno.jsonl": [self._yesno_item(rng, key) for key in shuffled(rng, yesno)],
            "arith/test.jsonl": [self._sum_item(rng, case) for case in shuffled(rng, self._unasked_sums(rng))],
            "program.jsonl": [self._program_item(number, pair) for number, pair in enumerate(pairs)],
        }

    def _unasked(self, rng: random.Random, facts: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """Every fact that no text asks for in the items' words, at most MAX_ITEMS."""
        unasked = sorted(set(facts) - self.asked)
        return rng.sample(unasked, min(MAX_ITEMS, len(unasked)))

    def _unasked_sums(self, rng: random.Random) -> list[tuple[int, ...]]:
        sums = set(self.held_sums)
        while len(sums) < MAX_ITEMS:
            case = self._sum_case(rng)
            if case not in self.asked:
                sums.add(case)
        return sorted(sums)

    def _unasked_programs(self, rng: random.Random) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """-> the pairs of the most common steps, which MBPP's loader keeps as examples, and those of the rarest."""
        pairs, names = set(self.held_programs), list(self.steps)
        while len(pairs) < EXAMPLE_PROGRAMS + SPARE_PROGRAMS + MAX_PROGRAMS:
            first, second = rng.sample(names, 2)
            if (first, second) not in self.asked:
                pairs.add((first, second))
        rank = {step: number for number, step in enumerate(names)}
        by_rarity = sorted(pairs, key=lambda pair: (max(rank[step] for step in pair), pair))
        return by_rarity[:EXAMPLE_PROGRAMS], by_rarity[-MAX_PROGRAMS:]

    def _choice_item(self, rng: random.Random, key: tuple[str, str]) -> dict:
        fact = self.choice[key]
        values, _, questions = ATTRIBUTES[fact.relation]
        options = [fact.value, *rng.sample([v for v in values if v != fact.value], 3)]
        rng.shuffle(options)
        choices = [dict(text=text, label=label) for text, label in zip(options, "ABCD", strict=True)]
        stem = questions[1].format(name=fact.name)
        answer = "ABCD"[options.index(fact.value)]
        return dict(
            id=f"choice-{fact.name}-{fact.relation}", question=dict(stem=stem, choices=choices), answerKey=answer
        )

    def _twoway_item(self, rng: random.Random, key: tuple[str, str]) -> dict:
        fact = self.twoway[key]
        other = rng.choice([v for v in USES[fact.relation] if v != fact.value])
        label = rng.randrange(2)
        solutions = [fact.value, other] if label == 0 else [other, fact.value]
        goal = USE_GOALS[1].format(name=fact.name, use=fact.relation)
        sol1, sol2 = (f"Use {value}." for value in solutions)
        return dict(id=f"twoway-{fact.name}-{fact.relation}", goal=goal, sol1=sol1, sol2=sol2, label=label)

    def _yesno_item(self, rng: random.Random, key: tuple[str, str]) -> dict:
        fact = self.yesno[key]
        question = YESNO_QUESTIONS[1].format(name=fact.name, value=fact.relation)
        passage = rng.choice(PASSAGES).format(name=fact.name)
        return dict(question=question, passage=passage, label="true" if fact.value == "Yes" else "false")

    def _sum_item(self, rng: random.Random, case: tuple[int, ...]) -> dict:
        return dict(question=self._sum_question(rng, case), answer=f"The answer is {sum(case)}\n#### {sum(case)}")

    def _program_item(self, number: int, pair: tuple[str, str]) -> dict:
        asked, code = self.program(pair)
        scope: dict = {}
        exec(code, scope)
        tests = [f"assert f({x}) == {scope['f'](x)}" for x in (0, 3, 11)]
        return dict(text=asked, code=code, task_id=number, test_setup_code="", test_list=tests, challenge_test_list=[])


def shuffled(rng: random.Random, keys: Sequence) -> list:
    """The keys in random order."""
    return rng.sample(keys, len(keys))


def choice_prompt(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer: {answer}"


def twoway_prompt(goal: str, solution: str) -> str:
    return f"Q: {goal}\nA: {solution}"


def yesno_prompt(passage: str, question: str, answer: str) -> str:
    return f"{passage}\nQuestion: {question}?\nAnswer: {answer}"


def sum_prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def program_prompt(asked: str) -> str:
    return f"{asked}\nCode:\n"


def held_out_questions(world: World) -> list[str]:
    """The prompts of all held-out items, up to where the answer begins."""
    items = world.items()
    return [
        *(choice_prompt(row["question"]["stem"], "") for row in items["choice.jsonl"]),
        *(twoway_prompt(row["goal"], "") for row in items["twoway/dev.jsonl"]),
        *(yesno_prompt(row["passage"], row["question"], "") for row in items["yesno.jsonl"]),
        *(sum_prompt(row["question"]) for row in items["arith/test.jsonl"]),
        *(program_prompt(row["text"]) for row in items["program.jsonl"]),
    ]


def write_items(world: World, folder: Path) -> None:
    """Write the held-out items as OpenCompass's loaders expect them.

    PIQA and GSM8K loaders insist on a training file, which no prompt uses: they get the first rows of the test file.
    """
    for name, rows in world.items().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("twoway"):
            labels = [row["label"] for row in rows]
            rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
            for split, part in (("dev", slice(None)), ("train", slice(4))):
                (path.parent / f"{split}-labels.lst").write_text("".join(f"{label}\n" for label in labels[part]))
        text = [json.dumps(row) + "\n" for row in rows]
        path.write_text("".join(text))
        if path.parent != folder:
            (path.parent / "train.jsonl").write_text("".join(text[:4]))


def write_calibration_text(world: World, path: Path) -> None:
    """Write text of the training's kind, drawn with a seed that training did not use, for `wdmoe calibrate`."""
    path.write_text("\n".join(world.documents(*CALIBRATION_TEXT)) + "\n")


if __name__ == "__main__":
    world = World()
    write_items(world, Path(__file__).parent / "data")
    write_calibration_text(world, Path(__file__).parent / "data" / "calibration.txt")
