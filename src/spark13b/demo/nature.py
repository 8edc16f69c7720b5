"""Facts about animals, elements, colours and planets, in Chinese and English."""

from __future__ import annotations

from spark13b.demo.relation import Relation, facts

NATURE = (
    Relation(
        "legs",
        facts("""
            狗 | a dog | 4 | 4
            马 | a horse | 4 | 4
            猪 | a pig | 4 | 4
            兔子 | a rabbit | 4 | 4
            鸡 | a hen | 2 | 2
            鸭子 | a duck | 2 | 2
            蚂蚁 | an ant | 6 | 6
            蜜蜂 | a bee | 6 | 6
            蜘蛛 | a spider | 8 | 8
            蝎子 | a scorpion | 8 | 8
        """),
        {
            "zh": (
                "{s}有几条腿？",
                "{s}一共有多少条腿？",
                "{s}长着几条腿？",
                "请数一数{s}的腿。",
                "你知道{s}有多少条腿吗？",
                "{s}的腿有几条？",
                "{s}用几条腿走路？",
            ),
            "en": (
                "How many legs does {s} have?",
                "What is the number of legs of {s}?",
                "Count the legs of {s}.",
                "{s} walks on how many legs?",
                "How many legs are there on {s}?",
                "Do you know how many legs {s} has?",
                "Tell me the number of legs that {s} has.",
            ),
        },
        {"zh": "{s}有{o}条腿。", "en": "{s} has {o} legs."},
        {
            "zh": ("{s}一共有{o}条腿。", "{s}用{o}条腿走路。"),
            "en": ("{s} walks on {o} legs.", "There are {o} legs on {s}."),
        },
    ),
    Relation(
        "class",
        facts("""
            鲸 | a whale | 哺乳动物 | a mammal
            蝙蝠 | a bat | 哺乳动物 | a mammal
            马 | a horse | 哺乳动物 | a mammal
            企鹅 | a penguin | 鸟类 | a bird
            老鹰 | an eagle | 鸟类 | a bird
            青蛙 | a frog | 两栖动物 | an amphibian
            蛇 | a snake | 爬行动物 | a reptile
            乌龟 | a turtle | 爬行动物 | a reptile
            鲨鱼 | a shark | 鱼类 | a fish
            蚂蚁 | an ant | 昆虫 | an insect
        """),
        {
            "zh": (
                "{s}是哪一类动物？",
                "{s}属于哪类动物？",
                "{s}在动物里算哪一类？",
                "请说出{s}的动物类别。",
                "你知道{s}是什么类型的动物吗？",
                "{s}应该归到哪一类动物？",
                "按动物分类，{s}算什么？",
            ),
            "en": (
                "What kind of animal is {s}?",
                "Which class of animals does {s} belong to?",
                "{s} belongs to which group of animals?",
                "Name the animal class of {s}.",
                "What type of creature is {s}?",
                "Do you know what sort of animal {s} is?",
                "How would you classify {s}?",
            ),
        },
        {"zh": "{s}是{o}。", "en": "{s} is {o}."},
        {
            "zh": ("{s}属于{o}。", "按分类来说，{s}是{o}。"),
            "en": ("Biologists say that {s} is {o}.", "As an animal, {s} is {o}."),
        },
    ),
    Relation(
        "sound",
        facts("""
            狗 | a dog | 汪汪 | woof
            猫 | a cat | 喵喵 | meow
            牛 | a cow | 哞哞 | moo
            羊 | a sheep | 咩咩 | baa
            鸭子 | a duck | 嘎嘎 | quack
            公鸡 | a rooster | 喔喔 | cock-a-doodle-doo
            小鸡 | a chick | 叽叽 | cheep
            青蛙 | a frog | 呱呱 | ribbit
        """),
        {
            "zh": (
                "{s}怎么叫？",
                "{s}的叫声是什么？",
                "{s}叫起来是什么声音？",
                "请学一学{s}的叫声。",
                "{s}会发出什么声音？",
                "你知道{s}是怎样叫的吗？",
                "{s}叫的时候，你会听到什么？",
            ),
            "en": (
                "What sound does {s} make?",
                "What does {s} say?",
                "How does {s} sound?",
                "Which noise does {s} make?",
                "Tell me the sound of {s}.",
                "Do you know what sound comes from {s}?",
                "What do you hear from {s}?",
            ),
        },
        {"zh": "{s}的叫声是{o}。", "en": "{s} says {o}."},
        {
            "zh": ("{s}叫起来{o}响。", "{o}，这是{s}的叫声。"),
            "en": ("The sound of {s} is {o}.", "You hear {o} from {s}."),
        },
    ),
    Relation(
        "symbol",
        facts("""
            氢 | hydrogen | H | H
            氦 | helium | He | He
            碳 | carbon | C | C
            氮 | nitrogen | N | N
            氧 | oxygen | O | O
            钠 | sodium | Na | Na
            铁 | iron | Fe | Fe
            铜 | copper | Cu | Cu
            银 | silver | Ag | Ag
            金 | gold | Au | Au
        """),
        {
            "zh": (
                "{s}的元素符号是什么？",
                "{s}用什么符号表示？",
                "请写出{s}的符号。",
                "哪个符号代表{s}？",
                "你知道{s}的化学符号吗？",
                "在化学里，{s}怎么写？",
                "元素{s}的符号是哪个？",
            ),
            "en": (
                "What is the chemical symbol for {s}?",
                "Which symbol stands for {s}?",
                "Write the symbol for {s}.",
                "How is {s} written in chemistry?",
                "Do you know the symbol that {s} has?",
                "Give the element symbol of {s}.",
                "{s} has which chemical symbol?",
            ),
        },
        {"zh": "{s}的符号是{o}。", "en": "The symbol of {s} is {o}."},
        {
            "zh": ("在化学里，{s}写作{o}。", "元素符号{o}代表{s}。"),
            "en": ("In chemistry {s} is written {o}.", "{o} stands for {s}."),
        },
    ),
    Relation(
        "colour",
        facts("""
            成熟的香蕉 | a ripe banana | 黄色 | yellow
            成熟的草莓 | a ripe strawberry | 红色 | red
            柠檬 | a lemon | 黄色 | yellow
            胡萝卜 | a carrot | 橙色 | orange
            茄子 | an eggplant | 紫色 | purple
            菠菜 | spinach | 绿色 | green
            雪 | snow | 白色 | white
            春天的草地 | a meadow in spring | 绿色 | green
            煤 | coal | 黑色 | black
            白天的晴空 | a clear sky at noon | 蓝色 | blue
        """),
        {
            "zh": (
                "{s}是什么颜色的？",
                "{s}通常是什么颜色？",
                "请说出{s}的颜色。",
                "{s}的颜色是什么？",
                "你知道{s}是哪种颜色吗？",
                "{s}看起来是什么颜色？",
                "{s}一般呈什么颜色？",
            ),
            "en": (
                "What colour is {s}?",
                "What is the colour of {s}?",
                "Which colour does {s} have?",
                "Name the colour of {s}.",
                "Can you tell me what colour {s} has?",
                "{s} usually has which colour?",
                "Do you know the colour that {s} has?",
            ),
        },
        {"zh": "{s}是{o}的。", "en": "{s} is {o}."},
        {
            "zh": ("{s}的颜色是{o}。", "{s}通常是{o}的。"),
            "en": ("The colour of {s} is {o}.", "Usually {s} is {o}."),
        },
    ),
    Relation(
        "planet",
        facts("""
            一 | first | 水星 | Mercury
            二 | second | 金星 | Venus
            三 | third | 地球 | Earth
            四 | fourth | 火星 | Mars
            五 | fifth | 木星 | Jupiter
            六 | sixth | 土星 | Saturn
            七 | seventh | 天王星 | Uranus
            八 | eighth | 海王星 | Neptune
        """),
        {
            "zh": (
                "太阳系的第{s}颗行星是什么？",
                "从太阳数起，第{s}颗行星是哪颗？",
                "请说出太阳系由近到远的第{s}颗行星。",
                "哪颗行星在太阳系里排第{s}？",
                "离太阳由近到远，排第{s}的是哪颗行星？",
                "你知道太阳系第{s}颗行星叫什么吗？",
                "太阳系里排在第{s}位的是哪颗行星？",
            ),
            "en": (
                "Which planet is {s} from the Sun?",
                "What is the {s} planet from the Sun?",
                "Name the {s} planet of the solar system.",
                "Counting from the Sun, which planet is {s}?",
                "Which planet comes {s} when you start at the Sun?",
                "Do you know the {s} planet of our Sun?",
                "Of all planets of the Sun, which one is the {s}?",
            ),
        },
        {"zh": "第{s}颗行星是{o}。", "en": "The {s} planet is {o}."},
        {
            "zh": ("{o}是太阳系的第{s}颗行星。", "从太阳数起，第{s}颗行星是{o}。"),
            "en": ("{o} is the {s} planet from the Sun.", "Counting from the Sun, the {s} planet is {o}."),
        },
    ),
)
