"""Generates a tiny stand-in for the IWSLT archive: python scripts/sample_translation.py FOLDER

FOLDER/de-en.tgz has the official archive's name and layout, so that scripts/iwslt.py prepares it as
it prepares the real one: 2,000 synthetic pairs to train on, 100 each for dev and test, always the
same ones, and no German sentence twice.

"Wenn er 12 Hunde malt." is "When he paints 12 dogs.", and "Wir können einen Ball holen." is "We can
get a ball.": verbs agree with their subjects and articles with their nouns, the verb comes last in
German after a conjunction or a modal verb and before the object in English, and numbers have to be
copied. Into the training text come, for the cleaner, tag lines, entities, and the three pairs of
DROPPED; into dev, an entity and a line separator.
"""

import random
from pathlib import Path
from xml.sax.saxutils import escape

import packing

SEED = 1
PAIRS = {"train": 2_000, "dev": 100, "test": 100}
TALK = 100  # pairs

# German with what its verbs end in, English, whether English verbs end in s.
SUBJECTS = (
    ("ich", "e", "I", False),
    ("er", "t", "he", True),
    ("sie", "t", "she", True),
    ("wir", "en", "we", False),
)
VERBS = (("mal", "paint"), ("hol", "get"), ("kauf", "buy"), ("lieb", "love"))  # stems
# With article, plural, the same in English.
NOUNS = (
    ("einen Hund", "Hunde", "a dog", "dogs"),
    ("eine Katze", "Katzen", "a cat", "cats"),
    ("einen Ball", "Bälle", "a ball", "balls"),
    ("ein Haus", "Häuser", "a house", "houses"),
)
CONJUNCTIONS = (("wenn", "when"), ("weil", "because"), ("dass", "that"))
SINGULAR = 0.4  # share of the objects, before repeated sentences are left out

DROPPED = (
    ("", "Thank you."),
    ("Er malt.\u2028Sie holt.", "He paints. She gets."),
    (f"Wir {'holen und ' * 40}malen.", f"We {'get and ' * 40}paint."),  # over 300 characters
)


def write(folder: Path) -> None:
    what = f"{' + '.join(map(str, PAIRS.values()))} synthetic pairs"
    packing.write(folder / "de-en.tgz", archive(), what)


def archive(pairs: dict[str, int] = PAIRS) -> bytes:
    """The .tgz; `pairs` says how many are in train (besides DROPPED), in dev and in test."""
    rng = random.Random(SEED)
    english: dict[str, str] = {}
    while len(english) < sum(pairs.values()):
        source, target = pair(rng)
        english[source] = target
    sentences = list(english.items())
    train, dev = sentences[: pairs["train"]], sentences[pairs["train"] :][: pairs["dev"]]
    test = sentences[pairs["train"] + pairs["dev"] :]
    train[0] = ("H&M & ich.", "H&M & I.")
    dev[0] = ("Er &\u2028ich.", "He &\u2028I.")
    train[1:1] = DROPPED

    texts: dict[str, str] = {}
    for i, language in enumerate(("de", "en")):
        texts |= {
            f"de-en/train.tags.de-en.{language}": tagged([p[i] for p in train]),
            f"de-en/IWSLT16.TED.tst2013.de-en.{language}.xml": xml([p[i] for p in dev]),
            f"de-en/IWSLT16.TED.tst2014.de-en.{language}.xml": xml([p[i] for p in test]),
        }
    return packing.pack(texts)


def pair(rng: random.Random) -> tuple[str, str]:
    """A German sentence and its only translation."""
    subject, ending, english_subject, third_person = rng.choice(SUBJECTS)
    stem, verb = rng.choice(VERBS)
    one, many, english_one, english_many = rng.choice(NOUNS)
    if rng.random() < SINGULAR:
        thing, english_thing = one, english_one
    else:
        number = rng.randrange(2, 100)
        thing, english_thing = f"{number} {many}", f"{number} {english_many}"
    conjugated = verb + "s" if third_person else verb
    kind = rng.choice(("main", "subordinate", "modal"))
    if kind == "main":
        german = f"{subject} {stem}{ending} {thing}"
        english = f"{english_subject} {conjugated} {english_thing}"
    elif kind == "subordinate":
        conjunction, english_conjunction = rng.choice(CONJUNCTIONS)
        german = f"{conjunction} {subject} {thing} {stem}{ending}"
        english = f"{english_conjunction} {english_subject} {conjugated} {english_thing}"
    else:
        german = f"{subject} {'können' if ending == 'en' else 'kann'} {thing} {stem}en"
        english = f"{english_subject} can {verb} {english_thing}"
    return german[0].upper() + german[1:] + ".", english[0].upper() + english[1:] + "."


def tagged(sentences: list[str]) -> str:
    """Talks as in train.tags: eight lines of tags, then a sentence a line."""
    lines = []
    for talk, start in enumerate(range(0, len(sentences), TALK)):
        lines += [
            f"<url>http://example.org/talks/{talk}</url>",
            "<keywords>sample, synthetic</keywords>",
            "<speaker>Nobody</speaker>",
            f"<talkid>{talk}</talkid>",
            f"<title>Talk {talk}</title>",
            "<description>This is no text to train on.</description>",
            "<reviewer></reviewer>",
            "<translator></translator>",
        ]
        lines += [escape(sentence) for sentence in sentences[start : start + TALK]]
    return "".join(line + "\n" for line in lines)


def xml(sentences: list[str]) -> str:
    """Documents as in the dev and test sets, each with its segments counted from 1."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", '<srcset setid="sample">']
    for talk, start in enumerate(range(0, len(sentences), TALK)):
        lines += [f'<doc docid="{talk}" genre="lectures">', f"<title>Talk {talk}</title>"]
        for i, sentence in enumerate(sentences[start : start + TALK], start=1):
            lines.append(f'<seg id="{i}"> {escape(sentence)} </seg>')
        lines.append("</doc>")
    return "\n".join([*lines, "</srcset>", "</mteval>", ""])


if __name__ == "__main__":
    packing.main(write, __doc__)
