"""The language model within one that sees or hears: it is served for text alone."""

from moesaic.models.config_reader import ConfigReader


def language_model(c: ConfigReader, *others: str, tied: bool | None = None) -> ConfigReader:
    """The reader of the language model's config; of `c` itself where that is one.

    Args:
        others: keys about images, sound and the tokens that stand for them, which text does not need.
        tied: whether the output projection is the embedding table, for a config that says nothing at its top, which
            then decides; None where the language model's own key does.
    """
    if "text_config" not in c:
        return c
    c.ignore("vision_config", *others)
    if tied is None:
        c.ignore("tie_word_embeddings")
        return c.child("text_config", metadata=True)
    tied = c.read(bool, "tie_word_embeddings", absent=tied)
    return c.child("text_config", metadata=True, tie_word_embeddings=tied)
