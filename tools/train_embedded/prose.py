"""Domain 2: English prose about MoE models and serving, from the facts, in many forms."""

from __future__ import annotations

import re
from random import Random

from .facts import QUESTIONS, SMALL_TALK, TOPICS, UNKNOWN, UNKNOWN_ANSWER, Topic

CHOICE = re.compile(r"\{([^{}]*)\}")

WHAT = ("What is {t}?", "What is {t}?", "What's {t}?", "what is {t}?", "What is {t}", "What does {t} mean?")
WHAT_MANY = ("What are {t}?", "what are {t}?", "What are {t}")
EXPLAIN = (
    "Explain {t}", "Explain {t}.", "explain {t}", "Please explain {t}.", "Can you explain {t}?", "Describe {t}.",
    "Tell me about {t}.", "Explain {t} to me.", "How would you explain {t}?", "Explain what {t} is.",
)  # fmt: skip
EXPLAIN_MANY = EXPLAIN[:-1]
BRIEF = (
    "Explain {t} in one sentence.",
    "In one sentence: what is {t}?",
    "Briefly, what is {t}?",
    "Define {t}.",
)
PLURALS = (
    "tokens", "embeddings", "models", "parameters", "experts", "kernels", "templates", "GPUs", "logits", "stages",
    "engines", "tiers", "requests", "connections", "statistics",
)  # fmt: skip
MORE = (
    "Tell me more.",
    "Go on.",
    "More, please.",
    "Can you say more?",
    "What else?",
    "And then?",
    "Continue.",
)


def spin(text: str, rng: Random) -> str:
    """Replace each `{a|b}` by one of its phrasings."""
    return CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), text)


def is_plural(name: str) -> bool:
    """Whether a topic's name asks for `are` (by its form; our names keep to it)."""
    return name.endswith(PLURALS) or name.startswith("the stages")


def sentences(topic: Topic, rng: Random) -> list[str]:
    """The topic's sentences, each in one of its phrasings."""
    return [spin(s, rng) for s in topic[1]]


def topic_question(topic: Topic, rng: Random) -> tuple[str, str]:
    """A question about the topic and its answer: one sentence if brief, else all of them."""
    name = rng.choice(topic[0])
    parts = sentences(topic, rng)
    roll = rng.random()
    if roll < 0.12:
        return rng.choice(BRIEF).format(t=name), parts[0]
    if roll < 0.5:
        return rng.choice(WHAT_MANY if is_plural(name) else WHAT).format(t=name), " ".join(parts)
    return rng.choice(EXPLAIN_MANY if is_plural(name) else EXPLAIN).format(t=name), " ".join(parts)


def unknown(rng: Random) -> tuple[str, str]:
    """A question outside the three domains."""
    return spin(rng.choice(UNKNOWN), rng), UNKNOWN_ANSWER


def chat_pair(rng: Random) -> tuple[str, str]:
    """One question and answer of this domain."""
    roll = rng.random()
    if roll < 0.05:
        return topic_question(TOPICS[0], rng)
    if roll < 0.62:
        return topic_question(rng.choice(TOPICS), rng)
    if roll < 0.87:
        question, answer = rng.choice(QUESTIONS)
    elif roll < 0.94:
        question, answer = rng.choice(SMALL_TALK)
    else:
        return unknown(rng)
    return spin(question, rng), spin(answer, rng)


def raw_pair(rng: Random) -> tuple[str, str]:
    """A bare prompt and its completion, as a completions client would send it."""
    topic = TOPICS[0] if rng.random() < 0.25 else rng.choice(TOPICS)
    name, parts = rng.choice(topic[0]), sentences(topic, rng)
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(("Explain {t}", "Explain {t}", "Explain {t}.")).format(t=name), "\n" + " ".join(parts)
    if roll < 0.6:
        return f"What {'are' if is_plural(name) else 'is'} {name}?", "\n" + " ".join(parts)
    if roll < 0.8:
        question, answer = (spin(t, rng) for t in rng.choice(QUESTIONS))
        return f"Q: {question}\nA:", f" {answer}"
    # The beginning of a sentence, to be continued.
    words = parts[0].split(" ")
    cut = rng.randint(1, min(5, len(words) - 1))
    return " ".join(words[:cut]), " " + " ".join([*words[cut:], *parts[1:]])


def essay(rng: Random) -> str:
    """A page of several paragraphs, each on one topic."""
    picked = rng.sample(TOPICS, rng.randint(1, 4))
    heading = rng.random() < 0.4
    out = []
    for topic in picked:
        text = " ".join(sentences(topic, rng))
        out.append(f"# {topic[0][0]}\n{text}" if heading else text)
    return "\n\n".join(out)


def conversation(rng: Random) -> list[tuple[str, str]]:
    """A question in two turns: the definition first, the rest on request."""
    topic = rng.choice(TOPICS)
    parts = sentences(topic, rng)
    question = rng.choice(BRIEF).format(t=rng.choice(topic[0]))
    return [(question, parts[0]), (rng.choice(MORE), " ".join(parts[1:]))]
