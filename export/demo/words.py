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
# The characters that Chinese texts use most, for the tokenizer.
COMMON_CHINESE = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部"
    "度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心"
    "反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老"
    "头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世"
    "金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米"
    "整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连断深难近千周委素技备半办青省列习响约支般史感便团往"
    "历市克何除消构府称太准精值号率族维划选标写存候亲快效院查江型眼按格养易置派层片始却专状育京识适属包火住调满局照参红细引听该铁价严"
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
