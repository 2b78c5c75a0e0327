"""Both sides of one list: what names a minor is refused, what does not is taken."""

from __future__ import annotations

import time

import pytest

from expunge.minors import names_minor, refuse_minors

SPELLINGS = (
    "teen_girl", "ch1ld", "ｃｈｉｌｄ", "chi\u200bld", "te.en", "t-e-e-n", "c h i l d",
    "T E E N", "t33n", "k1ds", "g1rl", "gir1", "l0li", "b@by", "chil\u0301d", "CHILD",
    "schоolgirl", "сhild", "school-girl", "school_girl", "schoolGirls", "childddd", "teeeen",
    "pre-teen", "pre teen", "under-age", "underaged", "jail-bait", "kiiid", "m!nor",
    "mi\u00adnor", "sch00lgirl", "𝓬𝓱𝓲𝓵𝓭", "ⓒⓗⓘⓛⓓ", "child's", "teen-ager", "little_girl",
    "young-boy", "t\u2060een", "chіld", "k.i.d.s", "(child:1.3)", "child,nude",
    "t3\u200b3n", "t33\u200b3n", "1girl", "toddler/baby",
)  # fmt: skip

AGES = (
    "aged 14", "fourteen-year-old", "under 16", "14 y.o.", "14yo", "age of twelve", "turning 15",
    "14 years old", "14-yr-old", "14 y/o", "14 yrs old", "14 years of age", "age 14", "age: 14",
    "ages 10 to 13", "12-15 years old", "under eighteen", "under the age of 18",
    "younger than 18", "below 18", "fifteen years young", "fourteenth birthday", "14th birthday",
    "fifth grader", "8th grade", "sweet sixteen", "18 months old", "she is 14",
    "she's only fifteen", "sixteen year old", "１４ years old", "١٤ years old", "aged fourteen",
    "a 9 year-old", "seventeenyearold", "14yrs", "14.5 years old", "13 and a half years old",
    "u18", "turned twelve", "not yet 18", "barely 16", "fourteen_year_old", "under-16s",
)  # fmt: skip

LANGUAGES = (
    "de 14 años", "catorce años", "niña", "menor de edad", "edad de quince", "14 ans",
    "quatorze ans", "dix-sept ans", "petite fille", "enfant", "adolescente", "14 Jahre",
    "vierzehn Jahre", "14-jährige", "Mädchen", "ein Kind", "Kind", "minderjährig", "14 лет",
    "четырнадцать лет", "девочка", "ребёнок", "подросток", "школьница", "14歳", "十四歳", "少女",
    "女子高生", "子供", "14岁", "十四岁", "未成年", "小女孩", "儿童", "14살", "열네 살", "14세",
    "소녀", "여고생", "어린이", "बच्चा", "लड़की", "नाबालिग", "१४ साल", "चौदह साल", "শিশু",
    "কিশোরী", "১৪ বছর", "طفلة", "الأطفال", "قاصر", "مراهقة", "١٤ سنة", "أربع عشرة سنة", "بچی",
    "نابالغ لڑکی", "چودہ سال", "criança", "menina", "quatorze anos", "14 anos", "bambina",
    "minorenne", "quattordici anni", "ragazzina", "çocuk", "küçük kız", "on dört yaşında",
    "14 yaşında", "liseli", "anak", "remaja", "umur empat belas", "14 tahun", "di bawah umur",
    "trẻ em", "bé gái", "14 tuổi", "mười bốn tuổi", "vị thành niên",
)  # fmt: skip

ADULT = (
    "pin-up girl", "Ursa Minor", "A minor chord", "C# minor", "girlfriend", "boyfriend",
    "kidney", "18 years old", "aged 40", "nude woman", "nudity", "a naked man", "gore", "blood",
    "violence", "twenty-five years old", "a 35-year-old woman", "forty-five year old",
    "18-25 years old", "two 25-year-old women", "cowboy", "cowgirl", "playboy", "calendar girl",
    "Asia Minor", "adult", "mature woman", "young woman", "young man", "lingerie", "bikini",
    "teeny bikini", "kidnap", "Julia Child", "Rothschild", "Billy the Kid", "baby blue",
    "babydoll dress", "boudoir", "topless", "erotic art", "university student", "teacher",
    "a kind woman", "minority", "Madeline", "under one blanket", "studio 54", "1980s",
    "a 1920s flapper", "35mm photo", "8k", "4k uhd", "50 años", "treinta y cinco años",
    "quarante-deux ans", "dix-huit ans", "fünfundvierzig Jahre", "40 лет", "двадцать пять лет",
    "25歳", "二十四岁", "25岁", "스물네 살", "18세기", "mulher", "junge Frau", "femme", "Frau",
    "женщина", "女人", "여자", "delapan belas tahun", "hai mươi lăm tuổi", "wanita", "kadın",
    "hanging from above", "she is 5 feet tall", "she is 30", "a man aged twenty", "mannequin",
    "Nina", "Kobe", "masterpiece", "a photo of a warning triangle", "in black and white",
    "rated 18+", "shunga", "Renaissance nude", "life drawing", "Titian", "manikin",
    "sixty years young", "fifty-one years old", "size 14", "chapter 12", "section 8",
    "Boeing 737",
)  # fmt: skip


@pytest.mark.parametrize("texts", [SPELLINGS, AGES, LANGUAGES], ids=("spelt", "ages", "other"))
def test_minors_are_recognised(texts: tuple[str, ...]) -> None:
    assert [text for text in texts if not names_minor(text)] == []
    assert [t for t in texts if t != "Kind" and not names_minor(f"a photo of {t}, at night")] == []


def test_adults_and_things_are_not_taken_for_minors() -> None:
    assert [text for text in ADULT if names_minor(text)] == []
    assert [text for text in ADULT if names_minor(f"a photo of {text} in a garden")] == []


def test_the_lists_are_as_long_as_the_rules_ask() -> None:
    for texts, least in ((SPELLINGS, 27), (AGES, 31), (LANGUAGES, 30), (ADULT, 30)):
        assert len(set(texts)) == len(texts) >= least


def test_an_adult_phrase_does_not_hide_a_minor() -> None:
    for text in ("teen girlfriend", "school girl friend", "14 year old girlfriend", "pin-up girls",
                 "pin-up girl and a girl"):  # fmt: skip
        assert names_minor(text) == (text != "pin-up girls"), text


def test_only_explicit_work_is_refused_and_nothing_is_echoed() -> None:
    refuse_minors("object", ["a child"])
    with pytest.raises(ValueError, match="must not name minors") as caught:
        refuse_minors("explicit", ["a woman", "a child " * 1000])
    assert len(str(caught.value)) < 120


def test_a_thousand_prompts_take_a_moment() -> None:
    start = time.process_time()
    refuse_minors("explicit", (f"a photo of woman number {i} in a garden" for i in range(100, 400)))
    assert time.process_time() - start < 3
