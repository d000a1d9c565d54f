"""Domain 3: JSON objects, in answer to requests for them."""

from __future__ import annotations

import json
import zlib
from random import Random
from typing import Any

NAMES = (
    "Ada", "Alan", "Alice", "Amir", "Anna", "Aria", "Ben", "Bob", "Carla", "Carlos", "Chen", "Clara",
    "Dana", "David", "Diego", "Elena", "Emma", "Eric", "Eva", "Farid", "Fatima", "Felix", "Finn", "Grace",
    "Hana", "Henry", "Hugo", "Ida", "Igor", "Ines", "Ivan", "Jack", "Jana", "Jim", "John", "Jonas", "Julia",
    "Kai", "Karl", "Kenji", "Lara", "Lea", "Leo", "Lena", "Lin", "Lisa", "Luca", "Lucy", "Luis", "Maria",
    "Marco", "Mary", "Max", "Maya", "Mei", "Mia", "Mila", "Mira", "Nadia", "Nina", "Noah", "Nora", "Olga",
    "Omar", "Oscar", "Paul", "Peter", "Pia", "Priya", "Ravi", "Rosa", "Ruth", "Sam", "Sara", "Sofia",
    "Sven", "Tara", "Theo", "Tim", "Tom", "Uma", "Vera", "Victor", "Wei", "Yara", "Yuki", "Zoe",
)  # fmt: skip
CITIES = (
    "Paris", "Berlin", "Rome", "Madrid", "London", "Oslo", "Vienna", "Prague", "Lisbon", "Dublin", "Tokyo",
    "Seoul", "Delhi", "Cairo", "Lima", "Quito", "Boston", "Austin", "Denver", "Toronto", "Sydney", "Zurich",
    "Geneva", "Munich", "Hamburg", "Milan", "Turin", "Warsaw", "Athens", "Helsinki",
)  # fmt: skip
COUNTRIES = (
    "France", "Germany", "Italy", "Spain", "Norway", "Austria", "Portugal", "Ireland", "Japan", "India",
    "Egypt", "Peru", "Canada", "Brazil",
)  # fmt: skip
COLORS = ("red", "green", "blue", "black", "white", "yellow", "orange", "purple", "grey", "brown")
PRODUCTS = (
    "lamp", "chair", "table", "book", "phone", "laptop", "mouse", "keyboard", "bottle", "bag", "clock",
    "camera", "desk", "pen", "cup", "router",
)  # fmt: skip
JOBS = (
    "engineer", "teacher", "doctor", "nurse", "writer", "designer", "farmer", "pilot", "chef", "driver",
    "artist", "lawyer",
)  # fmt: skip
TAGS = (
    "fast", "small", "new", "open", "free", "local", "cloud", "test", "demo", "beta", "cheap", "safe",
    "stable", "public", "private",
)  # fmt: skip
LANGS = ("Python", "Rust", "Java", "Go", "C", "C++", "Ruby", "Kotlin")
TITLES = ("The Quiet River", "A Long Winter", "Deep Water", "The Last Garden", "Night Train", "Small Stars")
MODELS = ("moe-tiny", "moe-small", "moe-large", "expert-mix", "router-one", "dense-base")
STATUS = ("active", "pending", "done", "failed", "open", "closed")

EXTRA: dict[str, tuple[Any, ...]] = {
    "brand": ("Volvo", "Fiat", "Honda", "Ford", "Toyota"), "electric": (True, False), "seen": (True, False),
    "genre": ("drama", "comedy", "jazz", "rock", "crime"), "language": ("English", "French", "German", "Spanish"),
    "liked": (True, False), "grade": ("A", "B", "C", "D"), "school": ("North School", "Park School", "Hill School"),
    "passed": (True, False), "subjects": (["math"], ["math", "art"], ["music", "history"], ["physics", "math"]),
    "species": ("cat", "dog", "horse", "bird", "fish"), "tame": (True, False), "legs": (0, 2, 4),
    "type": ("public", "private", "local"), "done": (True, False), "priority": ("low", "medium", "high"),
    "steps": ([1, 2, 3], [1, 2], []), "text": ("Hello", "Call me", "Write the report", "Buy milk", "See you soon"),
    "read": (True, False), "owner": tuple(NAMES), "director": tuple(NAMES), "artist": tuple(NAMES),
    "from": tuple(NAMES), "to": tuple(NAMES),
}  # fmt: skip
NUMBERS = {
    "speed": (80, 250), "length": (2, 180), "score": (0, 100), "weight": (1, 90), "employees": (2, 900),
    "founded": (1900, 2025),
}  # fmt: skip

# kind -> its fields; `value` says how each is made
FIELDS: dict[str, tuple[str, ...]] = {
    "user": ("name", "age", "email", "city", "country", "job", "active", "tags", "id", "address"),
    "person": ("name", "age", "city", "country", "job", "married", "languages", "height", "address"),
    "product": ("name", "price", "color", "quantity", "in_stock", "tags", "id", "rating", "size"),
    "book": ("title", "author", "year", "pages", "price", "available", "tags"),
    "city": ("name", "country", "population", "capital", "location"),
    "model": ("name", "experts", "top_k", "layers", "hidden_size", "quantized", "config"),
    "server": ("host", "port", "secure", "status", "workers", "tags", "config"),
    "order": ("id", "items", "total", "paid", "status", "customer"),
    "event": ("name", "date", "city", "public", "guests", "status"),
    "request": ("id", "model", "max_tokens", "temperature", "stream", "messages"),
    "car": ("brand", "model", "year", "color", "price", "speed", "electric", "owner"),
    "movie": ("title", "director", "year", "rating", "length", "genre", "language", "seen"),
    "song": ("title", "artist", "length", "genre", "year", "liked"),
    "student": ("name", "age", "grade", "school", "score", "passed", "subjects", "email"),
    "animal": ("name", "species", "age", "weight", "color", "tame", "legs"),
    "company": ("name", "city", "country", "employees", "public", "founded", "type"),
    "task": ("id", "title", "done", "priority", "owner", "status", "date", "steps"),
    "message": ("id", "from", "to", "text", "date", "read"),
}


def value(kind: str, field: str, rng: Random) -> Any:
    """A plausible value for a field of an object of this kind."""
    simple: dict[str, Any] = {
        "age": rng.randint(18, 80), "id": rng.randint(1, 999), "city": rng.choice(CITIES), "email": None,
        "country": rng.choice(COUNTRIES), "job": rng.choice(JOBS), "active": rng.random() < 0.5,
        "married": rng.random() < 0.5, "height": rng.randint(150, 200), "price": rng.randint(1, 99) + 0.5,
        "color": rng.choice(COLORS), "quantity": rng.randint(1, 50), "in_stock": rng.random() < 0.5,
        "rating": rng.randint(1, 5), "size": rng.choice(("small", "medium", "large")), "title": rng.choice(TITLES),
        "author": rng.choice(NAMES), "year": rng.randint(1950, 2025), "pages": rng.randint(80, 600),
        "available": rng.random() < 0.5, "population": rng.randint(10, 999) * 1000, "capital": rng.random() < 0.5,
        "experts": rng.choice((8, 16, 32, 64, 128)), "top_k": rng.choice((1, 2, 4, 8)), "layers": rng.randint(4, 60),
        "hidden_size": rng.choice((256, 512, 1024, 2048)), "quantized": rng.random() < 0.5,
        "secure": rng.random() < 0.5, "host": "localhost", "port": rng.choice((8000, 8080, 443, 5000)),
        "status": rng.choice(STATUS),
        "workers": rng.randint(1, 8), "total": rng.randint(5, 500) + 0.5, "paid": rng.random() < 0.5,
        "public": rng.random() < 0.5, "guests": rng.randint(2, 90), "max_tokens": rng.choice((16, 64, 128, 256)),
        "temperature": rng.choice((0.0, 0.5, 0.7, 1.0)), "stream": rng.random() < 0.5, "model": rng.choice(MODELS),
    }  # fmt: skip
    if field in EXTRA:
        return rng.choice(EXTRA[field])
    if field in NUMBERS:
        return rng.randint(*NUMBERS[field])
    if field == "title" and kind == "task":
        return rng.choice(EXTRA["text"])
    if field == "model" and kind == "car":
        return rng.choice("ABCSX") + str(rng.randint(1, 9))
    if field == "tags":
        return rng.sample(TAGS, rng.randint(1, 3))
    if field == "languages":
        return rng.sample(LANGS, rng.randint(1, 3))
    if field == "items":
        return [{"name": n, "quantity": rng.randint(1, 9)} for n in rng.sample(PRODUCTS, rng.randint(1, 2))]
    if field == "address":
        return {"city": rng.choice(CITIES), "country": rng.choice(COUNTRIES)}
    if field == "location":
        return {"lat": rng.randint(0, 60), "lon": rng.randint(0, 90)}
    if field == "config":
        return {"experts": rng.choice((8, 16, 32, 64)), "top_k": rng.choice((1, 2, 4))}
    if field == "customer":
        return {"name": rng.choice(NAMES), "id": rng.randint(1, 99)}
    if field == "messages":
        return [{"role": "user", "content": "Hello"}]
    if field == "date":
        return f"{rng.randint(2020, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if field == "name":
        pools: dict[str, Any] = {
            "product": PRODUCTS,
            "city": CITIES,
            "model": MODELS,
            "event": ("Open Day", "Meeting"),
        }
        return rng.choice(pools.get(kind, NAMES))
    if field == "email":
        return f"{rng.choice(NAMES).lower()}@example.com"
    return simple[field]


def is_held_out_request(kind: str, fields: tuple[str, ...], given: str = "") -> bool:
    """Whether this kind with this set of fields (and this given name) is kept out of training."""
    key = f"json {kind} {sorted(fields)} {given}"
    return zlib.crc32(key.encode()) % 10 == 0


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def article(kind: str) -> str:
    """`a` or `an`, with the noun."""
    return ("an " if kind[0] in "aeiou" else "a ") + kind


WITH_FIELDS = (
    "Give me a JSON object for {a_kind} with {fields}.", "Return JSON: {a_kind} with {fields}.",
    "Write a JSON object for {a_kind} with {fields}.", "Make a JSON object with the fields {fields} for {a_kind}.",
    "Give me a JSON object for {a_kind} with the fields {fields}.", "JSON for {a_kind} with {fields}, please.",
    "Return a JSON object describing {a_kind} with {fields}.", "Generate JSON for {a_kind}: {commas}.",
    "Create a JSON object for {a_kind} with {fields}.", "Output JSON for {a_kind} with keys {commas}.",
    "Give me a JSON object with {fields}.", "Return a JSON object with the keys {commas}.",
)  # fmt: skip
BARE = (
    "Give me a JSON object for {a_kind}.", "Return JSON for {a_kind}.", "Write {a_kind} as JSON.",
    "Show me an example of {a_kind} in JSON.", "Return {a_kind} as a JSON object.", "Describe {a_kind} in JSON.",
)  # fmt: skip
GIVEN = (
    "Give me a JSON object for a user named {name}, age {age}, from {city}.",
    "Return JSON: name {name}, age {age}, city {city}.",
    "Write a JSON object for {name}, who is {age} years old and lives in {city}.",
    "Convert to JSON: name is {name}, age is {age}, city is {city}.",
)
GIVEN_SHORT = (
    "Give me a JSON object for a user named {name} with age {age}.",
    "Return JSON: name {name}, age {age}.",
    "Write a JSON object for {name}, who is {age} years old.",
    "Convert to JSON: name={name}, age={age}",
)
LIST_OF = (
    "Give me a JSON list of {n} {kind}s with {fields}.",
    "Return a JSON array of {n} {kind}s with {fields}.",
    "Write a JSON object with a list of {n} {kind}s with {fields}.",
)


def sample_fields(kind: str, rng: Random) -> tuple[str, ...]:
    """Between one and five fields of a kind; the first ones of the list come often."""
    names = FIELDS[kind]
    count = min(len(names), rng.choice((1, 2, 2, 2, 3, 3, 3, 4, 5)))
    if rng.random() < 0.3:
        return names[:count]
    return tuple(rng.sample(names, count))


def build(kind: str, fields: tuple[str, ...], rng: Random) -> dict[str, Any]:
    """An object of this kind with exactly these fields, in this order."""
    return {field: value(kind, field, rng) for field in fields}


def request(rng: Random, held_out: bool = False) -> tuple[str, str, Any]:
    """A prompt, its JSON answer as text, and as a value; from the training side or the held-out side."""
    while True:
        kind = rng.choice(list(FIELDS))
        fields = sample_fields(kind, rng)
        roll = rng.random()
        if roll < 0.62:
            if is_held_out_request(kind, fields) != held_out:
                continue
            prompt = rng.choice(WITH_FIELDS).format(
                a_kind=article(kind), fields=listed(list(fields)), commas=", ".join(fields)
            )
            answer: Any = build(kind, fields, rng)
        elif roll < 0.70:
            if held_out:
                continue
            prompt = rng.choice(BARE).format(a_kind=article(kind))
            answer = build(kind, FIELDS[kind][:3], rng)
        elif roll < 0.90:
            name, age, city = rng.choice(NAMES), rng.randint(18, 80), rng.choice(CITIES)
            if is_held_out_request("given", (str(age),), name) != held_out:
                continue
            answer = {"name": name, "age": age}
            if rng.random() < 0.5:
                prompt = rng.choice(GIVEN_SHORT).format(name=name, age=age)
            else:
                prompt = rng.choice(GIVEN).format(name=name, age=age, city=city)
                answer["city"] = city
        else:
            kind, fields, n = rng.choice(("user", "product", "book")), fields[:2], rng.choice((2, 3))
            fields = tuple(f for f in FIELDS[kind][:3] if rng.random() < 0.6) or FIELDS[kind][:2]
            if is_held_out_request(kind, fields, str(n)) != held_out:
                continue
            template = rng.choice(LIST_OF)
            prompt = template.format(n=n, kind=kind, fields=listed(list(fields)))
            answer = [build(kind, fields, rng) for _ in range(n)]
            if "object with a list" in template:
                answer = {kind + "s": answer}
        return prompt, json.dumps(answer), answer


def chat_pair(rng: Random) -> tuple[str, str]:
    """One request and its JSON, for training."""
    prompt, text, _ = request(rng)
    if rng.random() < 0.1:
        prompt += rng.choice((" Only JSON.", " Answer with JSON only.", " No other text.", " Return only the JSON."))
    return prompt, text


def edited(rng: Random) -> list[tuple[str, str]]:
    """Two turns: an object, then the same object with one field set."""
    prompt, text, answer = request(rng)
    if not isinstance(answer, dict):
        return [(prompt, text)]
    field, new = rng.choice((("active", True), ("active", False), ("verified", True), ("score", rng.randint(1, 99))))
    ask = rng.choice(('Add the field "{f}" with value {v}.', 'Set "{f}" to {v}.', "Add {f} = {v}."))
    return [(prompt, text), (ask.format(f=field, v=json.dumps(new)), json.dumps({**answer, field: new}))]
