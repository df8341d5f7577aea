"""What a model's reply says behind its thinking, and the option that it names: by hand, as models write."""

from types import SimpleNamespace

import pytest

from src.data.questions import CANNOT
from src.rewards.reply import after_thinking, read_letter, read_reply, shortened

OPTIONS = ("red", "blue", CANNOT)
STRICT = ["B", " b\n", "B.", "(B)", "B)", "B: blue", "B. blue.", "(B) blue", "B. Blue", "[B]", "B - blue", "B\nblue"]
MARKED = ["**B**", "**B.** blue", "`B`", '"B"', "*B*", "__B__", "$B$", r"\boxed{B}", r"$\boxed{\text{B}}$."]
WORDED = [
    *("Answer: B", "answer: (b)", "Answer:B", "**Answer:** B", "**Answer: B**", "The answer is B.", "The answer is: B"),
    *("The correct answer is B. blue", "Option B", "The right choice is option B", "Final Answer: **B. blue**"),
    *("my answer is (B)", r"The final answer is $\boxed{B}$.", "答案:B", "答案：B", "答案是B。", "（Ｂ）", "Ｂ．"),
    *("正确答案：B", "正确答案是B", "选B", "选项B", "“B”", "\u200bB"),
]
TAGGED = ["<answer>B</answer>", "<answer> (B) blue </answer>", "<|begin_of_box|>B<|end_of_box|>"]
NONE = [
    *("D", "blue", "A blue ball", "B. red", "AB", "B or C", "", "?", "A or B", "**A** or **B**", "I am sure", "Option"),
    *("The answer is a", "The answer is blue", "the answer is a blue ball", "Answer: A blue ball", "Answer: D", "B, A"),
    *("A-frame", "The answer is not B", r"\boxed{}", "<answer>A blue ball</answer>", "B\n\nThe ball is blue.", "Ä"),
]


@pytest.mark.parametrize("reply", [*STRICT, *MARKED, *WORDED, *TAGGED])
def test_a_reply_that_names_one_option_and_says_nothing_beside(reply):
    assert read_letter(reply, OPTIONS) == 1


@pytest.mark.parametrize("reply", NONE)
def test_no_more_is_guessed_at(reply):
    assert read_letter(reply, OPTIONS) is None


def test_a_box_at_the_end_of_thinking_stays_whole():
    for box in ("<|begin_of_box|>B<|end_of_box|>", "<|begin_of_solution|>B<|end_of_solution|><|end|>"):
        assert read_letter(after_thinking(f"<think>x</think>{box}"), OPTIONS) == 1


def test_the_words_of_an_option_are_compared_as_they_are_written():
    options = ("the dog's *tail*", "U.S.", "ｔｗｏ", CANNOT)
    replies = ['A. "The dog\'s tail"', "B. U.S.", "C. two", f"D. {CANNOT}.", "E", "D"]
    assert [read_letter(reply, options) for reply in replies] == [0, 1, 2, 3, None, 3]


CLOSED = {
    "Qwen": "<think>\nA or B? Surely </b>\n</think>\n\nB",
    "switched off": "<think>\n\n</think>\n\nB",
    "opened by the template": "The ball is blue, so A is wrong.\n</think> B",
    "thinking": "<thinking>A?</thinking>B",
    "reasoning": "<reasoning>A?</reasoning>\nB",
    "upper case": "<THINK>A?</THINK>B",
    "Seed": "<seed:think>A?</seed:think>B",
    "Magistral": "[THINK]A?[/THINK]B",
    "Sky-T1": "<|begin_of_thought|>A?<|end_of_thought|>B",
    "Command A": "<|START_THINKING|>A?<|END_THINKING|>B",
    "Kimi": "◁think▷A?◁/think▷B",
    "gpt-oss": "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
    "gpt-oss, constrained": "<|channel|>analysis<|message|>A<|channel|>final <|constrain|>json<|message|>B",
    "gpt-oss, special tokens left out": "analysisWe need a letter: A?assistantfinalB",
    "Gemma": "<|channel>thought\nA?<channel|>B",
    "twice": "<think>A?</think><think>C?</think>B",
    "nested": "<think>A<think>C</think>A</think>B",
    "special tokens behind": "<think>A</think>B<|im_end|>\n</s>",
    "no thinking": "B",
}
UNCLOSED = {
    "Qwen": "<think>\nOkay, the user wants A",
    "again": "<think>A?</think>B<think>wait",
    "Magistral": "[THINK]A",
    "gpt-oss": "<|channel|>analysis<|message|>A",
    "gpt-oss, special tokens left out": "analysisWe need a letter: A",
    "Sky-T1": "<|begin_of_thought|>A",
    "nothing behind": "<think>A</think>\n",
    "nothing": "",
}


@pytest.mark.parametrize("reply", CLOSED.values(), ids=CLOSED)
def test_thinking_that_ends_is_skipped(reply):
    assert after_thinking(reply) == "B"


@pytest.mark.parametrize("reply", UNCLOSED.values(), ids=UNCLOSED)
def test_thinking_that_does_not_end_says_nothing(reply):
    assert after_thinking(reply) is None


def choice(content, finish="stop", **more):
    return SimpleNamespace(finish_reason=finish, message=SimpleNamespace(content=content, **more))


@pytest.mark.parametrize(
    "reply, text, shown",
    [
        (choice("B", reasoning_content="A?"), "B", '"B"'),
        (
            choice(None, "length", reasoning_content="Okay,\nA"),
            None,
            'only thinking "Okay, A" (cut off after 9 tokens)',
        ),
        (choice("", "length", reasoning="Okay"), None, 'only thinking "Okay" (cut off after 9 tokens)'),
        (choice(" \n", "length"), None, "nothing (cut off after 9 tokens)"),
        (choice(None), None, "nothing"),
        (choice(None, refusal="I must not."), None, 'a refusal "I must not."'),
        (choice("<think>A\x1b[2J", "length"), None, '"<think>A?[2J" (cut off after 9 tokens)'),
        (
            choice([{"type": "thinking", "thinking": [{"type": "text", "text": "A?"}]}, {"type": "text", "text": "B"}]),
            "B",
            '"B"',
        ),
    ],
)
def test_replies_as_servers_send_them(reply, text, shown):
    assert read_reply(reply, 9)[:2] == (text, shown)


def test_long_replies_are_shown_by_both_ends():
    assert shortened("a" * 100 + "b" * 100, 20) == "a" * 10 + " ... " + "b" * 10
    assert shortened(" a\n\tb ", 20) == "a b"
