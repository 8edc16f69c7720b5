"""Greetings and small talk: an opening, whom it is said to, and what is said next; one answer an intent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spark13b.demo.prompt import LANGUAGES, Language, Prompt


@dataclass(frozen=True, slots=True)
class Intent:
    """What a greeting means: `openings` and `tails` by language; `mark` ends the opening."""

    name: str
    mark: str
    openings: dict[Language, tuple[str, ...]]
    tails: dict[Language, tuple[str, ...]]
    answer: dict[Language, str]


_ADDRESSES: dict[Language, tuple[str, ...]] = {
    "zh": ("", "小星", "小助手", "我的朋友"),
    "en": ("", "Little Star", "dear assistant", "my friend"),
}

INTENTS = (
    Intent(
        "hello",
        "!",
        {"zh": ("你好", "您好", "嗨", "哈喽", "你好呀"), "en": ("Hello", "Hi", "Hey", "Hi there", "Greetings")},
        {
            "zh": ("", "很高兴见到你。", "我来找你聊天了。", "我们又见面了。", "我是新来的。"),
            "en": ("", "Nice to meet you.", "I came to chat.", "Here I am again.", "I am new here."),
        },
        {"zh": "你好！有什么可以帮你？", "en": "Hello! How can I help you?"},
    ),
    Intent(
        "morning",
        "!",
        {
            "zh": ("早上好", "早安", "早啊", "早晨好", "早呀"),
            "en": ("Good morning", "Morning", "A good morning to you", "A very good morning", "Top of the morning"),
        },
        {
            "zh": ("", "新的一天开始了。", "我刚刚起床。", "太阳出来了。", "我昨晚睡得很香。"),
            "en": ("", "A new day begins.", "I just got up.", "The sun is up.", "I slept very well."),
        },
        {"zh": "早上好！祝你今天愉快！", "en": "Good morning! Have a nice day!"},
    ),
    Intent(
        "how are you",
        "?",
        {
            "zh": ("你好吗", "你最近怎么样", "你今天过得好吗", "你近来还好吗", "你今天心情如何"),
            "en": ("How are you", "How are things today", "How is it going", "Are you well", "How do you feel"),
        },
        {
            "zh": ("", "我很关心你。", "好久没聊了。", "我一直惦记着你。", "跟我说说吧。"),
            "en": ("", "I care about you.", "It has been a while.", "I have thought of you.", "Do tell me."),
        },
        {"zh": "我很好，谢谢关心！", "en": "I am fine, thank you!"},
    ),
    Intent(
        "thanks",
        "!",
        {
            "zh": ("谢谢", "多谢", "谢谢你", "非常感谢", "太感谢了"),
            "en": ("Thanks", "Thank you", "Many thanks", "Thank you so much", "Thanks a lot"),
        },
        {
            "zh": ("", "你帮了大忙。", "这对我很有用。", "你讲得很清楚。", "问题解决了。"),
            "en": ("", "You helped a lot.", "This is useful.", "That was very clear.", "My problem is solved."),
        },
        {"zh": "不客气！", "en": "You are welcome!"},
    ),
    Intent(
        "praise",
        "!",
        {
            "zh": ("你真棒", "你真聪明", "你好厉害", "做得好", "干得漂亮"),
            "en": ("Well done", "Good job", "You are smart", "You are great", "Nice work"),
        },
        {
            "zh": ("", "我很佩服你。", "你全都答对了。", "这次又答对了。", "我没想到你会这个。"),
            "en": ("", "I admire you.", "All answers are right.", "Right once more.", "I did not expect that."),
        },
        {"zh": "谢谢夸奖，我会继续努力！", "en": "How kind, I will keep learning!"},
    ),
    Intent(
        "sorry",
        "!",
        {
            "zh": ("对不起", "抱歉", "不好意思", "真对不起", "请原谅"),
            "en": ("Sorry", "I am sorry", "My apologies", "Forgive me", "I do apologize"),
        },
        {
            "zh": ("", "我打错字了。", "我说错话了。", "我来晚了。", "刚才是我弄错了。"),
            "en": ("", "I made a typo.", "I said it wrong.", "I am late.", "That was my mistake."),
        },
        {"zh": "没关系！", "en": "No problem at all!"},
    ),
    Intent(
        "goodbye",
        "!",
        {
            "zh": ("再见", "拜拜", "回头见", "下次见", "明天见"),
            "en": ("Goodbye", "Bye", "See you later", "See you tomorrow", "Bye for now"),
        },
        {
            "zh": ("", "我要走了。", "我去吃饭了。", "今天先聊到这里。", "我该上班去了。"),
            "en": ("", "I have to go.", "It is time for lunch.", "That is all for today.", "I must go to work."),
        },
        {"zh": "再见，下次再聊！", "en": "Goodbye, see you next time!"},
    ),
    Intent(
        "night",
        "!",
        {
            "zh": ("晚安", "祝你晚安", "祝你好梦", "做个好梦", "好好睡吧"),
            "en": ("Good night", "Night night", "Sweet dreams", "Sleep well", "A good night to you"),
        },
        {
            "zh": ("", "我要睡觉了。", "我困了。", "已经很晚了。", "我要关灯了。"),
            "en": ("", "I am going to bed.", "I am sleepy.", "It is very late.", "I will turn off the light."),
        },
        {"zh": "晚安，祝你好梦！", "en": "Good night, sleep well!"},
    ),
)


def greeting_prompts() -> Iterator[Prompt]:
    """Every opening with every address and every tail of its intent."""
    for intent in INTENTS:
        for language in LANGUAGES:
            for opening in intent.openings[language]:
                for address in _ADDRESSES[language]:
                    for tail in intent.tails[language]:
                        yield Prompt(
                            _said(opening, address, tail, intent.mark, language),
                            (intent.answer[language],),
                            "greeting",
                            language,
                            intent.name,
                            (f"opening: {opening}", f"address: {address}", f"{intent.name} tail: {tail}"),
                        )


def _said(opening: str, address: str, tail: str, mark: str, language: Language) -> str:
    if language == "zh":
        wide = "？" if mark == "?" else "！"
        return opening + (f"，{address}" if address else "") + wide + tail
    return opening + (f", {address}" if address else "") + mark + (f" {tail}" if tail else "")
