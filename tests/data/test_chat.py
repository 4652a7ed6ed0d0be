"""The chat templates: prompt and training text agree token by token, and the loss mask is what the model writes."""

from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import is_chat_template_stop_token_trained

from r1llama.data.chat import TEMPLATES, special_tokens, template_path
from r1llama.data.loading import DataError
from r1llama.data.tokenizer import PIECES, check_tokenizer, train_tokenizer

SWITCHES = [{}, {"enable_thinking": None}, {"enable_thinking": True}, {"enable_thinking": False}]
END = {"r1llama": "<|im_end|>", "llama3": "<|eot_id|>", "llama3.1": "<|eot_id|>"}


def spelling_tokenizer(template):
    """As an off-the-shelf Llama: the tags are ordinary text, with merges such as `>\n\n` across their ends."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    text = "<think>\nab\n</think>\n\nab <answer>\n\n</answer>\n\n\n <think>\n\n</think>\n\nuser\n\nassistant\n" * 9
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<bos>", "<eos>", "<pad>", *special_tokens(template)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=marks, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=marks[3:],
    )
    tokenizer.chat_template = template
    assert len(tokenizer.encode(">\n\n", add_special_tokens=False)) == 1
    return tokenizer


TOKENIZERS = {}
for name, path in TEMPLATES.items():
    template = path.read_text(encoding="utf-8")
    TOKENIZERS[name] = train_tokenizer(["the cat sat on the mat\n\n" * 9], 400, template)
    TOKENIZERS[f"{name}, tags spelled"] = spelling_tokenizer(template)
every_template = pytest.mark.parametrize("name", TOKENIZERS)
every_switch = pytest.mark.parametrize("switch", SWITCHES, ids=str)

text = st.text(alphabet="ab \n\t.<>/é🦙", max_size=12)
assistant = st.one_of(
    st.builds(lambda c: {"role": "assistant", "content": c}, text),
    st.builds(lambda t, c: {"role": "assistant", "content": f"<think>{t}</think>{c}"}, text, text),
    st.builds(lambda t, c: {"role": "assistant", "content": c, "reasoning_content": t}, text, text),
)
turns = st.lists(
    st.tuples(st.builds(lambda c: {"role": "user", "content": c}, text), assistant), min_size=1, max_size=3
)


def render(tokenizer, messages, switch, **keywords):
    return tokenizer.apply_chat_template(messages, return_dict=True, **switch, **keywords)


@every_template
@every_switch
@given(turns=turns, system=text)
@settings(max_examples=60, deadline=None)
def test_each_prompt_is_a_prefix_of_the_training_text_and_the_mask_is_the_rest_of_the_turn(
    name, switch, turns, system
):
    tokenizer, end = TOKENIZERS[name], END[name.partition(",")[0]]
    messages = [{"role": "system", "content": system}]
    expected = []
    for user, answer in turns:
        messages.append(user)
        prompt = render(tokenizer, messages, switch, add_generation_prompt=True)["input_ids"]
        messages.append(answer)
        full = render(tokenizer, messages, switch)["input_ids"]
        assert full[: len(prompt)] == prompt
        written = len(full) - full[::-1].index(tokenizer.convert_tokens_to_ids(end))  # up to the end of the turn
        expected += [0] * (len(prompt) - len(expected)) + [1] * (written - len(prompt))
        expected += [0] * (len(full) - len(expected))
    both = render(tokenizer, messages, switch, return_assistant_tokens_mask=True)
    assert both["input_ids"] == full
    assert both["assistant_masks"] == expected


THOUGHTS = [
    {"role": "assistant", "content": "b", "reasoning_content": " hm\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
]


@every_template
@pytest.mark.parametrize("answer", THOUGHTS, ids=["field", "inline"])
def test_thoughts_of_earlier_turns_are_kept_unless_switched_off(name, answer):
    messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "c"}]
    thinking, silent = "<think>\nhm\n</think>\n\nb", "<think>\n\n</think>\n\nb"
    for switch, written in zip(SWITCHES, [thinking, thinking, thinking, silent], strict=True):
        rendered = TOKENIZERS[name].apply_chat_template(messages, tokenize=False, **switch)
        assert written + END[name.partition(",")[0]] in rendered
        assert rendered.count("<think>") == 1


@every_template
def test_content_is_written_as_it_stands_when_nothing_is_switched(name):
    answer = "<think>3+5=8</think><answer>8</answer>"
    messages = [{"role": "user", "content": "3+5="}, {"role": "assistant", "content": answer}]
    assert answer in TOKENIZERS[name].apply_chat_template(messages, tokenize=False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "3+"}, {"type": "text", "text": "5="}]}]
    whole = [{"role": "user", "content": "3+5="}]
    assert render(TOKENIZERS[name], parts, {}) == render(TOKENIZERS[name], whole, {})


@every_template
def test_an_answer_can_be_continued(name):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm"}]
    assert (
        TOKENIZERS[name]
        .apply_chat_template(messages, tokenize=False, continue_final_message=True)
        .endswith("\n<think>\nhm")
    )


@every_template
def test_trl_finds_the_end_of_the_turn_in_the_loss(name):
    assert is_chat_template_stop_token_trained(TOKENIZERS[name])


@every_template
def test_tools_are_refused(name):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    for messages, tools in [
        ([{"role": "user", "content": "a"}], [call["function"]]),
        ([{"role": "assistant", "content": "", "tool_calls": [call]}], None),
        ([{"role": "tool", "content": "1"}], None),
    ]:
        with pytest.raises(TemplateError, match="no form for tool"):
            TOKENIZERS[name].apply_chat_template(messages, tools=tools, tokenize=False)


CHATS = [
    [{"role": "user", "content": " hi\n"}],
    [{"role": "system", "content": " be brief "}, {"role": "user", "content": "1+1"}],
    [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]],
]


@pytest.mark.parametrize("chat", CHATS, ids=len)
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("llama3", "llama3"), ("llama3.1", "llama3_1"), ("llama3.1", "llama3_2")]
)
def test_llama_3_reads_the_same_as_with_its_own_template(ours, theirs, prompt, chat):
    tokenizer = TOKENIZERS[f"{ours}, tags spelled"]
    own = (Path(trl.__file__).parent / "chat_templates" / f"{theirs}.jinja").read_text(encoding="utf-8")
    date = {"date_string": "01 Apr 2025"} if theirs == "llama3_2" else {}  # 3.2 takes today's
    keywords = {"add_generation_prompt": prompt} | date
    expected = tokenizer.apply_chat_template(chat, chat_template=own, **keywords)
    assert tokenizer.apply_chat_template(chat, **keywords) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_with_a_template_passes_its_check(name):
    check_tokenizer(TOKENIZERS[name])
    assert TOKENIZERS[name].extra_special_tokens == special_tokens(template_path(name).read_text())


def test_an_unknown_template_is_refused():
    with pytest.raises(DataError, match=r"chatml is neither a chat template of r1llama \(.*llama3.1.*\) nor a file"):
        template_path("chatml")
