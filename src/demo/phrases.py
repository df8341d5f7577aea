"""The words of the demo's captions: each idea with the words of a hundred people, one of which has the majority."""

WORDS: dict[str, dict[str, float]] = {
    "circle": {"circle": 64, "ball": 17, "dot": 9, "round shape": 5, "disc": 5},
    "square": {"square": 70, "box": 18, "block": 8, "cube": 4},
    "triangle": {"triangle": 86, "pyramid": 10, "cone": 4},
    "star": {"star": 84, "star shape": 16},
    "ring": {"ring": 60, "circle": 18, "donut": 9, "hoop": 7, "round shape": 6},
    "heart": {"heart": 82, "heart shape": 18},
    "red": {"red": 90, "bright red": 5, "crimson": 3, "orange": 2},
    "yellow": {"yellow": 87, "bright yellow": 6, "gold": 7},
    "green": {"green": 88, "dark green": 7, "bright green": 5},
    "blue": {"blue": 86, "dark blue": 8, "royal blue": 3, "purple": 3},
    "purple": {"purple": 78, "violet": 12, "pink": 4, "blue": 6},
    "white": {"white": 94, "pale": 4, "light": 2},
    "small": {"small": 70, "little": 18, "tiny": 12},
    "large": {"large": 62, "big": 30, "huge": 8},
    "striped": {"striped": 84, "stripy": 5, "lined": 5, "patterned": 6},
    "dotted": {"dotted": 60, "spotted": 20, "polka dot": 15, "patterned": 5},
    "checkered": {"checkered": 74, "checked": 14, "patterned": 8, "plaid": 4},
    "left of": {"to the left of": 46, "next to": 36, "left of": 8, "beside": 8, "on the left of": 2},
    "right of": {"to the right of": 46, "next to": 36, "right of": 8, "beside": 8, "on the right of": 2},
    "above": {"above": 62, "over": 16, "on top of": 14, "near": 6, "higher than": 2},
    "below": {"below": 50, "under": 30, "beneath": 10, "near": 10},
    "inside": {"inside": 66, "in": 22, "in the middle of": 12},
    "around": {"around": 75, "surrounding": 25},
    "image": {"a picture of": 62, "an image of": 18, "a picture showing": 8, "a drawing of": 8, "a photo of": 4},
    "shapes": {"shapes": 78, "objects": 14, "figures": 8},
    "colorful": {"colorful": 55, "different colored": 15, "geometric": 18, "different": 12},
    "several": {"some": 55, "a couple of": 22, "a few": 15, "a bunch of": 8},
}  # fmt: skip
# Patterns after a noun instead of an adjective before it.
TEXTURE_ENDINGS = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
NUMBERS = ("zero", "one", "two", "three", "four")

# The place at the end of a sentence, and at its start. {colour} is the background's colour.
GROUNDS: dict[str, dict[str, float]] = {
    "plain": {"on a {colour} background": 76, "on a plain {colour} background": 8, "on a {colour} wall": 8,
              "against a {colour} background": 8},
    "gradient": {"on a {colour} background": 70, "on a shaded {colour} background": 14, "on a faded background": 16},
    "noise": {"on a gray background": 58, "on a grainy background": 20, "on a noisy gray background": 12,
              "on a carpet": 10},
    "grass": {"on the grass": 48, "in the grass": 16, "on a green background": 16, "in a grassy field": 14,
              "on a lawn": 6},
    "sky": {"in the sky": 46, "in a blue sky": 20, "against a blue sky": 14, "on a blue background": 12,
            "in the clouds": 8},
    "sand": {"on the sand": 46, "in the sand": 18, "on a beach": 16, "on a sandy beach": 12,
             "on a brown background": 8},
    "wood": {"on a wooden table": 48, "on a wooden surface": 18, "on a wooden floor": 18,
             "on a brown background": 10, "on a table": 6},
    "night": {"in the night sky": 48, "on a dark background": 18, "at night": 16, "in space": 12,
              "on a black background": 6},
}  # fmt: skip
SCENERY: dict[str, str] = {
    "grass": "a grassy field", "sky": "a blue sky", "sand": "a sandy beach", "wood": "a wooden table",
    "night": "a night sky",
}  # fmt: skip


def plural_of(noun: str) -> str:
    """Return the plural of a word for shapes."""
    return noun + ("es" if noun[-1] in "sx" else "s")
