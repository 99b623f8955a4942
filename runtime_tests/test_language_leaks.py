"""Prompts as people type them, in which something of a person once went out in the clear or came out garbled.

The first test needs no knowledge of the parser: people who differ in one value alone, and write their prompts by hand,
must send the same set.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious import Options, candidate_set, check_negative
from obclip.edge.oblivious.policy import load_policy

DEFAULT, WORLD = load_policy("default"), load_policy("world")


def prompts(text: str) -> tuple[str, ...]:
    return candidate_set(text, DEFAULT).prompts


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("a photo of {} man:1.3)", ["an (old", "a (young", "a (middle-aged"]),
        ("{} woman:1.2), bokeh", ["an (asian", "a (black", "a (white", "an (indian", "a (european"]),
        ('portrait of {} man" in a hat', ['an "old', 'a "young', 'a "middle-aged']),
        ("portrait of {} woman))", ["an ((old", "a ((young"]),
        ("{}, lonely man on a bench", ["an old", "a young", "a middle-aged"]),
        ("a tall, {}, tired woman", ["old", "young", "middle-aged"]),
        ("three {}, happy women", ["old", "young", "middle-aged"]),
        ("a doctor, {} holding a clipboard", ["shes", "hes", "she's", "he's"]),
        ("my {} at the beach", ["gf", "bf", "girlfriend", "boyfriend"]),
        ("a {} in a castle", ["lord", "nobleman", "noblewoman"]),
        ("{} school girl in uniform", ["black", "white", "asian"]),
        ("{} in uniform", ["black_girl", "white_boy", "asian_girl"]),
        ("{} cat lady", ["an old", "a young", "a middle-aged"]),
        ("{} horse rider", ["an old", "a young"]),
        ("{} trucker at night", ["an old", "an elderly", "a young"]),
        ("a woman {}, studio light", ["over 60", "aged 60+", "of eighty", "at the age of 70", "(65)", "under 30"]),
        ("a {} man in a suit", ["25-30 year old", "hundred year old", "50years old", "middle age", "middel-aged"]),
        ("a portrait of a {} woman", ["dark brown skinned", "pale white skinned", "bronzed skinned"]),
        ("a portrait of a {} woman", ["darkskin", "lightskin"]),
        ("{} village woman", ["an old", "a young", "a middle-aged"]),
        ("{} folk on a bench", ["old", "young", "middle-aged"]),
        ("a {} woman at a window", ["wizened", "young"]),
        ("{} makeup artist", ["a black", "an asian", "a white"]),
        ("{} bikini model", ["a black", "an asian", "a white"]),
        ("{} car salesman", ["a black", "an asian"]),
        ("a woman, {}, red hair", ["over 60", "in 30s", "forties", "late 20s", "25-30", "60+", "age 25", "about 40"]),
        ("{} walking dogs", ["mom", "dad"]),
        ("{} wearing cat ears", ["a female", "a male"]),
        ("{} animal rights activist", ["a female", "a male"]),
        ("{} fish market vendor", ["an old", "a young"]),
        ("{} flower seller", ["a female", "a male"]),
        ("a {} woman", ["suntanned", "bronzed", "fair", "pale", "dark-skinned"]),
        ("a woman with {} skin", ["snow white", "milk chocolate", "deathly pale", "rosy", "dark-colored"]),
        ("a woman {}", ["in her 60s or 70s", "who is 45 years old", "[30]", "at 60", "of 25 years"]),
        ("{} woman", ["70-odd year old", "30-40yo", "around 30 years old"]),
        ("a {} on a beach", ["blond man", "blonde woman"]),
        ("a {} police officer fishing", ["retired", "young", "middle-aged"]),
        ("my {} cooking", ["mother-in-law", "father-in-law"]),
        ("my {} on a swing", ["oldest sister", "youngest sister", "oldest brother"]),
        ("a {} woman", ["very pale", "extremely pale", "dark-skined", "slightly tanned"]),
        ("a woman with {} skin", ["dark colored", "light coloured", "honey colored"]),
        ("a woman, {}", ["age=25", "age: 70", "age - 45", "approx 70", "at least 60"]),
        ("me and my {} at dinner", ["fiancée", "fiancé"]),
        ("me and my {}", ["ex-wife", "ex-husband"]),
        ("{} goblin", ["an old", "a young"]),
        ("I'm a {} nurse", ["45 year old", "70-year-old", "young"]),
        ("{} in a pub", ["lads", "lasses"]),
        ("a {}", ["groom", "bridegroom", "bride"]),
        ("{} woman", ["a west african", "a central asian", "an indian"]),
        ("{} on a beach", ["a latino", "a latina"]),
        ("two {}", ["latinos", "latinas"]),
        ("a {} dancer", ["latino", "latina", "female", "male"]),
        ("the boss is {}", ["female", "male"]),
        ("{} dancers", ["male and female", "female and male", "female and female"]),
        ("a {} orc warrior", ["female", "male"]),
        ("{} character design", ["female", "male"]),
        ("{} and a tall man", ["an old", "a young"]),
        ("{}, tall, wise man", ["an old", "a young", "a middle-aged"]),
        ("{} wise, tall man", ["an old", "a young", "a middle-aged"]),
        ("{} and brave and noble man", ["an old", "a young", "a middle-aged"]),
        ("{} punk woman", ["an old,", "a young,", "a young and"]),
        ("1girl, {}, long hair", ["mature female", "old woman"]),
        ("1girl, {}, long hair", ["young", "(elderly:1.2)", "25 years old"]),
        ("{}, solo, red dress", ["1girl, asian", "1boy, european", "asian 1girl", "(indian:1.3) 1boy"]),
        ("{} woman, bokeh", ["(old:1.2)", "((young))", "[middle-aged]", "{{old}}", "(25 years old:1.1)"]),
        ("a woman who is {}", ["old", "young", "45"]),
        ("a woman who is {}, smiling", ["black", "asian"]),
        ("a woman {}", ["just past 60", "well over 70", "~25 years old", ", approx. 25 years", ", early 20s"]),
        ("a {} woman", ["college-aged", "college age", "retirement-aged"]),
        ("{} in a castle", ["a succubus", "an incubus"]),
        ("{} in a castle", ["a warlock", "a witch", "a wizard"]),
        ("{} at a bar", ["a milf", "a dilf"]),
        ("{} in a cafe", ["a catgirl", "a catboy"]),
        ("{} in a cafe", ["an egirl", "an e-boy"]),
        ("RAW photo, {} woman, film grain", ["25 y.o.", "60 years old", "45yo", "old"]),
        ("{} with a staff", ["a female wizard", "a male wizard", "a male witch", "a wizard"]),
        ("a {} on a cliff", ["female hero", "male hero", "heroine"]),
        ("a {} on a throne", ["vampire lord", "vampire noblewoman"]),
        ("{} at a farm", ["a milkmaid", "a male dairy worker"]),
        ("{} half-elf rogue", ["female", "male"]),
        ("woman, {} smiling", ["25 years old", "70 years old"]),
        ("{}, woman, glasses", ["25yo", "70 years old", "(45yo:1.2)", "age 30"]),
        ("{}, a doctor", ["25yo", "70 years old"]),
        ("a woman {}", ["of about 30", "of around 70 years old", "over the age of 60", "[30 years old]", "(70yo)"]),
        ("woman, {}, smile", ["30y", "70y", "45yo"]),
    ],
)  # fmt: skip
def test_people_who_differ_in_one_value_send_one_set(template: str, values: list[str]):
    sets = {prompts(template.format(value)) for value in values}
    assert len(sets) == 1
    assert len(next(iter(sets))) > 1


_VALUES = (
    ["young", "old", "middle-aged"], ["asian", "indian", "european", "black", "white"], ["pale", "tanned", "brown"],
)  # fmt: skip
_PLACED = (
    "{x} {noun}", "{x}, {plain} {noun}", "{plain}, {x} {noun}", "{plain} {x} {noun}", "{x} village {noun}",
    "{x} {plain} {noun}", "{x} and {plain} {noun}", "{x}, {plain}, elegant {noun}", "{x} school {noun}",
)  # fmt: skip
_LOOSE = (
    "{noun}, {x}, {plain}", "{noun}, {plain}, {x}", "{noun} who is {x}", "{noun} in red, {x} and {plain}",
    "{noun} of {x} descent", "{noun} with {x} features", "{noun} with {x} hands",
)  # fmt: skip
_WRAPPED = ("{}", "({}:1.2)", "[{}]", '"{}"', "(({}))", "{} in a garden", "{}, bokeh", "{}. Soft light.")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_VALUES).flatmap(lambda values: st.lists(st.sampled_from(values), min_size=2, max_size=2)),
    st.sampled_from(_PLACED + _LOOSE), st.sampled_from(_WRAPPED), st.sampled_from(["", "a photo of ", "masterpiece, "]),
    st.sampled_from(["tired", "unusual", "smiling", "beautiful", "tall", "rich", "muscular", "long-haired"]),
    st.sampled_from(["woman", "man", "trucker", "doctor", "wizard", "ladies"]), st.sampled_from(["in", "out", "none"]),
)  # fmt: skip
def test_the_way_of_writing_does_not_tell_the_value(pair, phrase, wrapped, start, plain, noun, article):
    def written(value: str) -> str:
        text = phrase.format(x=value, plain=plain, noun=noun)
        one = "" if article == "none" or noun == "ladies" else "an " if text[0] in "aeiou" else "a "
        return start + (wrapped.format(one + text) if article == "in" else one + wrapped.format(text))

    def sent(value: str) -> tuple[str, ...] | None:
        try:
            return prompts(written(value))
        except PrivacyError:
            return None

    first, second = map(sent, pair)
    assert first == second
    if phrase in _PLACED and article != "none":  # refusing everything would hide everything
        assert first is not None
        assert len(first) > 2 - (noun in ("trucker", "doctor"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a young, beautiful woman in a red dress", "a beautiful young woman in a red dress"),
        ("an old, bearded fisherman", "a bearded old fisherman"),
        ("a woman, 25yo", "a young woman"),
        ("people aged 65+", "old people"),
        ("woman, (25 years old:1.3)", "young woman"),
        ("old folks playing cards", "old people playing cards"),
        ("an old model", "an old model"),
        ("old school teacher at the blackboard", "old school teacher at the blackboard"),
        ("grampa in a rocking chair", "old man in a rocking chair"),
        ("a woman with dark brown skin", "a woman with dark skin"),
        ("an asain girl", "an asian girl"),
        ("a cantonese woman", "an asian woman"),
        ("an old village woman", "an old village woman"),
        ("a crazy old cat lady", "a crazy old cat woman"),
        ("black school girls in uniform", "african school girls in uniform"),
        ("a group of 80 year olds", "a group of old people"),
        ("1girl, mature female, smile", "1girl, middle-aged woman, smile"),
        ("1girl, solo, female focus", "1girl, solo, female focus"),
        ("1girl, asian, red dress", "asian 1girl, red dress"),
        ("a teacher who is old", "an old teacher"),
        ("people who are old", "old people"),
        ("a woman who is old, smiling", "an old woman, smiling"),
        ("a woman who is old and wise", "an old woman who is wise"),
        ("a woman who is old and tired", "an old woman who is tired"),
        ("a woman who is 70 years old and tall", "an old woman who is tall"),
        ("the doctor was female and kind", "the doctor was female and kind"),
        ("an old and a tall man", "a tall old man"),
        ("a female tennis club", "a female tennis club"),
        ("a female wearing a coat", "a woman wearing a coat"),
        ("a villainess", "a female villain"),
        ("a shield maiden at sea", "a female shield bearer at sea"),
        ("two succubi", "two succubuses"),
        ("RAW photo, 25 y.o. woman, film grain", "raw photo, young woman, film grain"),
        ("woman, 25 years old smiling", "young woman smiling"),
        ("a half-man half-robot", "a half-man half-robot"),
        ("a lumberjack", "a male logger"),
    ],
)  # fmt: skip
def test_canonical_words(text: str, expected: str):
    found = candidate_set(text, DEFAULT)
    assert found.prompts[found.index] == expected
    assert len(found.prompts) > 1


@pytest.mark.parametrize(
    "text",
    [
        "woman, black, curly hair, red dress", "a girl, black, smiling", "(black:1.3), woman",
        "a woman, black and beautiful", "a woman, Chinese, long black hair", "woman, elderly, long hair, smiling",
        "woman, Japanese, wearing red", "portrait of a woman, she is black and beautiful", "a man, he's black",
        "a woman, make her black", "a woman, her skin is dark and glowing", "a man whose skin is brown",
        "skin tone: dark", "a man with skin like chocolate", "a woman of Japanese descent", "a man with asian features",
        "woman, asian ethnicity", "of Korean heritage", "a close-up of an elderly face", "old wrinkled hands",
        "an asian face, studio light", "black hands", "a young body", "an elderly character", "a woman in old age",
        "an elderly dishwasher", "#blackwoman portrait", "a youngman in a suit", "elderly-man", "whiteman", "milady",
        "a handmaiden pouring wine", "a tavern wench", "an old hombre", "gyaru", "a macho biker", "20s woman, office",
        "60s housewife", "a man who looks 50", "a woman of color", "people of colour marching",
        "a woman \U0001f1ef\U0001f1f5 in a garden", "young wonder woman", "an old superman",
        "President Trump in a suit", "young at heart old woman", "a woman with pale freckled skin", "dark, smooth skin",
        "skin, dark and glowing", "her skin a warm brown", "tall, dark and handsome man", "a woman with a pale face",
        "a woman with tanned legs", "asian eyes", "a mature face", "who's 60, a woman", "a woman born in 1950",
        "young, long hair, 2girls, smile", "two women, one is black", "two women, they are black",
        "a woman that is black",
        "a group of women, all black", "black and white women", "a woman with long hair from Japan",
        "she is from Nigeria",
        "portrait of a model, from India", "raised in Kenya, a woman", "women of Afghanistan", "a Nigeria woman",
        "tomboy", "a 25F in an office", "gender: m", "a half-black woman", "over 60, a woman",
        "an elderly feeding pigeons",
        "Will Smith eating spaghetti", "Lady Gaga on stage", "a woman from Nigeria", "a girl from Japan",
        "asian portrait, soft light", "african close-up", "gen z woman", "a gen-z streamer",
        "1girl, black\nred dress, smile", "woman, old BREAK red dress", "woman, asian makeup",
        "a woman who appears to be black", "she should be black", "she's not black", "a woman that's black",
        "make the woman black", "1girl black", "woman, black --ar 16:9", "a woman, half black", "a woman, very black",
        "ethnicity black, a woman", "a doctor - black - smiling", "a doctor / black / smiling",
        "I am black, draw me", "I am asian", "I'm black, draw me", "we are black", "you are black",
        "I am 45 years old, draw me", "I am 45", "young me", "an old me", "old version of me", "me but black",
        "woman 25", "25 woman", "a 25 year woman", "woman, 20s to 30s", "woman (20s)", "woman 60s", "a woman ~70",
        "she is 60 now", "she must be 60", "her 70th birthday", "born 1950, a woman", "woman, 25.5 years old",
        "woman, 2 5 years old", "woman, 70 1/2 years old", "a dark woman", "an olive woman", "a light brown woman",
        "a woman and her younger self", "young version of a woman", "an old man and a young one", "someone black",
        "somebody asian", "everyone is black", "two friends, one black and one white", "two women, both black",
        "me (24f) and my dog", "my friend (F25)", "F, smiling", "a doctor (f)", "24/f in a dress",
        "\u5973\u4eba", "\u7f8e\u5973, smile", "homme smiling", "shota", "an asian:1.2 woman", "asian+ woman",
        "a black:1.2 woman", "half asian half white woman", "a woman who isn't black", "a dark beautiful woman",
        "a dark, beautiful woman", "dark young woman", "woman 25 yrs", "a half asian woman",
        "a woman on her thirtieth birthday", "seventy woman", "twenty-five woman", "a chinaman", "1girl, mature male",
        "manlike robot", "womanlike robot", "asian portrait photography", "25woman in an office", "16girl", "45man",
        "a woman who is tall and black", "she is tall and black", "a doctor, tall and black",
        "a doctor who is tired and black",
    ],
)  # fmt: skip
def test_what_was_sent_in_the_clear_is_refused(text: str):
    with pytest.raises(PrivacyError):
        candidate_set(text, DEFAULT)


def test_how_much_someone_is_pregnant_goes_with_it():
    found = candidate_set("a heavily pregnant woman", load_policy("sensitive")).prompts
    assert found == tuple(sorted(f"a {how}{who}" for how in ("", "pregnant ") for who in ("man", "woman")))


@pytest.mark.parametrize("text", ["latino people dancing", "a latino family"])
def test_a_people_s_name_for_several_says_no_gender(text: str):
    assert len(prompts(text)) == 1


@pytest.mark.parametrize("text", ["woman of muslim faith", "a man of jewish religion"])
def test_faith_said_behind_a_person_is_refused_where_it_is_protected(text: str):
    with pytest.raises(PrivacyError):
        candidate_set(text, load_policy("sensitive"))


@pytest.mark.parametrize(
    "text",
    [
        "a woman with two dogs, one black", "a man with two horses, one white and the other brown",
        "a woman in jeans and a shirt, both white", "a man in a suit, mostly black", "a man dressed in all black",
        "a woman in a dress that is black", "her dress is very black", "a man with a car, the car is not black",
        "portrait of a woman 16:9", "portrait of a man 50% opacity", "15 man crew",
        "a woman in a half black half white dress", "a woman holding an old version of a phone",
        "a woman with a dr pepper", "dr martens boots on a woman", "a woman shot at 35 / f 1.4",
        "f/1.8 bokeh portrait of a woman", "a dark queen", "a dark room with a man",
        "WOMAN ON LUNCH BREAK WITH SANDWICH",
    ],
)  # fmt: skip
def test_of_what_is_no_attribute_nothing_is_taken_away(text: str):
    """Two candidates, for the gender alone, and every word of the prompt in the real one."""
    found = candidate_set(text, DEFAULT)
    assert len(found.prompts) == 2
    assert set(found.prompts[found.index].split()) >= set(text.lower().split()) - {"man", "her"}


def test_blond_hair_is_nobody():
    found = candidate_set("a woman with long blonde hair", DEFAULT, Options(hide=("gender",)))
    assert found.prompts == tuple(f"a {who} with long blond hair" for who in ("man", "person", "woman"))


@pytest.mark.parametrize("text", ["elderly hands", "young face", "an asian face", "her skin is dark"])
def test_negative_prompts_about_parts_of_people_are_refused(text: str):
    with pytest.raises(PrivacyError):
        check_negative(text, DEFAULT)


@pytest.mark.parametrize(
    "text",
    [
        "an old, rusty car and a tree", "old, rusty car on a street", "folk music", "an old clock face", "black hair",
        "brown eyes", "an old dishwasher in a kitchen", "the baltic sea", "an old school bus", "an old dog",
        "a group of twenty", "1960s furniture", "a bridge over 50 meters of water", "lord of the rings",
        "a heart \U0001f495 and \U0001f48e", "a postcard from Japan", "smooth skin of a peach", "asian temple, fog",
        "a splash of color", "black widow spider", "god rays over a forest", "a black cowboy hat",
        "an 18th century map", "oni mask", "mma ring", "old portrait photography",
        "an 8k render", "an FBI agent", "a UFO over a city", "glowing skin, golden light", "a turkey farmer",
        "japanese garden, old stones, moss", "old portrait in a frame", "retired boats in a harbour",
        "an old car and a new one", "an old version of windows", "f/1.8 bokeh, a tree", "a 2,000 year old temple",
        "a 5 year plan", "dark elf forest", "caf\u00e9 in Paris", "long blonde hair, blue eyes",
        "a black cat, all black", "a rock 4.5 years in the making", "dr pepper can on a table",
    ],
)  # fmt: skip
def test_what_is_about_nobody_still_passes(text: str):
    assert len(prompts(text)) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a white haired woman", "white haired"), ("brown eyed girl", "brown eyed"), ("white hair woman", "white hair"),
        ("a black leather clad woman", "black leather"), ("black lipstick woman", "black lipstick"),
        ("a woman in a black dress", "black dress"), ("a black dress girl", "black dress"),
        ("a woman, her dress is black", "dress is black"), ("a cat that is black and a woman", "cat that is black and"),
        ("a woman dressed in all black", "all black"), ("a black-haired woman", "black-haired"),
        ("everything is white, a woman in snow", "everything is white"), ("an unidentified man", "an unidentified"),
        ("a woman with smooth skin and dark hair", "dark hair"), ("a woman wearing pink and black", "pink and black"),
        ("a man is wearing pink and black", "pink and black"), ("his shirt is torn and black", "torn and black"),
        ("a woman with a bag, big and black", "big and black"), ("her hair is long and black", "long and black"),
    ],
)  # fmt: skip
def test_colours_of_hair_and_clothes_stay(text: str, kept: str):
    found = prompts(text)
    assert len(found) == 2
    assert all(kept in prompt for prompt in found)


def test_ages_without_a_person_are_no_ages():
    assert prompts("a mother of two in a park") == ("a father of two in a park", "a mother of two in a park")
    assert len(prompts("a family of 20 in a park")) == 1


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("a woman from Nigeria", "nigeria"), ("a man who looks 50", "50"), ("old hands", "old hands"),
        ("a woman, her skin is dark", "dark"), ("an elderly dishwasher", "elderly"), ("a geisha and a man", "geisha"),
    ],
)  # fmt: skip
def test_each_refusal_has_the_way_out_that_it_names(text: str, allowed: str):
    with pytest.raises(PrivacyError, match="--allow"):
        candidate_set(text, DEFAULT)
    found = candidate_set(text, DEFAULT, Options(allow=(allowed,)))
    assert all(allowed in prompt for prompt in found.prompts)


@pytest.mark.parametrize("how", ["under the age of 18", "under 18 years old", "below 18 years old", "aged under 18"])
def test_who_is_under_an_age_is_a_year_below_it(how: str):
    """So that a minor gets no adult candidates, which policies keep apart."""
    assert prompts(f"a student {how}") == prompts("a 17-year-old student") != prompts("an 18-year-old student")
