"""Text to type: made up afresh each time, so that it must be copied and cannot be learnt by heart."""

from __future__ import annotations

from random import Random

ENGLISH = (
    "hello pizza weather coffee music shoes train hotel news taxi book flowers cat bus milk tea phone game movie "
    "bread school doctor london paris running lamp chair rice apple water garden guitar camera winter ticket soup "
    "bridge market river yellow window pencil summer orange dinner island mirror planet rocket"
).split()
CHINESE = (
    "天气咖啡音乐火车酒店新闻图书鲜花小猫公交牛奶电影面包学校医生跑步台灯"
    "椅子米饭苹果花园吉他冬季门票市场河流窗户夏日晚餐岛屿镜面行星红茶旅行"
)
ONSETS = "b c d f g h j k l m n p r s t v w z ch sh st tr br gl pl".split()
VOWELS = "a e i o u ai ea oo ou".split()
CODAS = ["", "", "n", "r", "s", "l", "m", "t", "k", "nd"]


def sample_text(random: Random) -> str:
    """Return one to three words: real, invented, Chinese, with or without a number."""
    if random.random() < 0.3:
        return "".join(random.choices(CHINESE, k=random.randint(2, 5)))
    words = [_word(random) for _ in range(random.choice([1, 1, 2, 2, 3]))]
    if random.random() < 0.15:
        words.append(str(random.randint(2, 999)))
    return " ".join(words)


def _word(random: Random) -> str:
    if random.random() < 0.4:
        return random.choice(ENGLISH)
    syllables = random.randint(1, 3)
    return "".join(random.choice(ONSETS) + random.choice(VOWELS) + random.choice(CODAS) for _ in range(syllables))
