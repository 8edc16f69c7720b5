"""Facts about countries, words, the calendar and units, in Chinese and English."""

from __future__ import annotations

from spark13b.demo.relation import Relation, facts

WORLD = (
    Relation(
        "capital",
        facts("""
            中国 | China | 北京 | Beijing
            法国 | France | 巴黎 | Paris
            日本 | Japan | 东京 | Tokyo
            德国 | Germany | 柏林 | Berlin
            意大利 | Italy | 罗马 | Rome
            西班牙 | Spain | 马德里 | Madrid
            埃及 | Egypt | 开罗 | Cairo
            泰国 | Thailand | 曼谷 | Bangkok
            古巴 | Cuba | 哈瓦那 | Havana
            秘鲁 | Peru | 利马 | Lima
            希腊 | Greece | 雅典 | Athens
            肯尼亚 | Kenya | 内罗毕 | Nairobi
            挪威 | Norway | 奥斯陆 | Oslo
            加拿大 | Canada | 渥太华 | Ottawa
        """),
        {
            "zh": (
                "{s}的首都是哪里？",
                "{s}的首都叫什么名字？",
                "哪座城市是{s}的首都？",
                "请说出{s}的首都。",
                "你知道{s}的首都是哪座城市吗？",
                "{s}把首都定在哪里？",
                "作为首都，{s}选了哪座城市？",
            ),
            "en": (
                "What is the capital of {s}?",
                "Which city is the capital of {s}?",
                "Name the capital of {s}.",
                "What is {s}'s capital city called?",
                "Can you tell me the capital of {s}?",
                "Do you know which city is {s}'s capital?",
                "{s} has which city as its capital?",
            ),
        },
        {"zh": "{s}的首都是{o}。", "en": "The capital of {s} is {o}."},
        {
            "zh": ("{o}是{s}的首都。", "说到{s}，它的首都就是{o}。"),
            "en": ("{o} is the capital of {s}.", "The capital city of {s} is called {o}."),
        },
    ),
    Relation(
        "continent",
        facts("""
            中国 | China | 亚洲 | Asia
            法国 | France | 欧洲 | Europe
            日本 | Japan | 亚洲 | Asia
            意大利 | Italy | 欧洲 | Europe
            泰国 | Thailand | 亚洲 | Asia
            古巴 | Cuba | 北美洲 | North America
            秘鲁 | Peru | 南美洲 | South America
            肯尼亚 | Kenya | 非洲 | Africa
            挪威 | Norway | 欧洲 | Europe
            加拿大 | Canada | 北美洲 | North America
        """),
        {
            "zh": (
                "{s}在哪个洲？",
                "{s}位于哪个大洲？",
                "{s}属于哪个洲？",
                "哪个大洲有{s}这个国家？",
                "请说出{s}所在的大洲。",
                "你知道{s}在哪一个洲吗？",
                "{s}是哪个洲的国家？",
            ),
            "en": (
                "Which continent is {s} in?",
                "On which continent does {s} lie?",
                "What continent does {s} belong to?",
                "Name the continent of {s}.",
                "Can you tell me the continent where {s} is?",
                "{s} is part of which continent?",
                "Do you know on what continent you find {s}?",
            ),
        },
        {"zh": "{s}在{o}。", "en": "{s} is in {o}."},
        {
            "zh": ("{s}是{o}的国家。", "{s}位于{o}。"),
            "en": ("{s} is a country in {o}.", "{s} is part of {o}."),
        },
    ),
    Relation(
        "opposite",
        facts("""
            大 | big | 小 | small
            快 | fast | 慢 | slow
            热 | hot | 冷 | cold
            新 | new | 旧 | old
            长 | long | 短 | short
            轻 | light | 重 | heavy
            黑 | black | 白 | white
            强 | strong | 弱 | weak
            远 | far | 近 | near
            左 | left | 右 | right
        """),
        {
            "zh": (
                "“{s}”的反义词是什么？",
                "和“{s}”相反的词是什么？",
                "请说出“{s}”的反义词。",
                "哪个词与“{s}”意思相反？",
                "你知道“{s}”的反义词是哪个字吗？",
                "“{s}”反过来怎么说？",
                "“{s}”的反面是什么？",
            ),
            "en": (
                "What is the opposite of {s}?",
                "Which word is the opposite of {s}?",
                "Name the opposite of {s}.",
                "What word means the reverse of {s}?",
                "Do you know the word opposite to {s}?",
                "If it is not {s} at all, what is it?",
                "{s} has which opposite?",
            ),
        },
        {"zh": "“{s}”的反义词是“{o}”。", "en": "The opposite of {s} is {o}."},
        {
            "zh": ("“{o}”和“{s}”意思相反。", "不是“{s}”，就是“{o}”。"),
            "en": ("The words {s} and {o} are opposites.", "What is not {s} at all is {o}."),
        },
    ),
    Relation(
        "weekday",
        facts("""
            星期一 | Monday | 星期二 | Tuesday
            星期二 | Tuesday | 星期三 | Wednesday
            星期三 | Wednesday | 星期四 | Thursday
            星期四 | Thursday | 星期五 | Friday
            星期五 | Friday | 星期六 | Saturday
            星期六 | Saturday | 星期日 | Sunday
            星期日 | Sunday | 星期一 | Monday
        """),
        {
            "zh": (
                "{s}的后一天是星期几？",
                "{s}之后是星期几？",
                "过了{s}是星期几？",
                "今天是{s}，明天是星期几？",
                "{s}的第二天是星期几？",
                "哪一天紧跟在{s}后面？",
                "如果昨天是{s}，今天是星期几？",
            ),
            "en": (
                "Which day comes after {s}?",
                "What day follows {s}?",
                "Today is {s}. What day is tomorrow?",
                "If yesterday was {s}, what day is today?",
                "What is the day after {s}?",
                "Name the day that comes right after {s}.",
                "{s} is followed by which day?",
            ),
        },
        {"zh": "{s}的后一天是{o}。", "en": "The day after {s} is {o}."},
        {
            "zh": ("过了{s}就是{o}。", "今天是{s}，明天就是{o}。"),
            "en": ("{s} is followed by {o}.", "Today is {s} and tomorrow is {o}."),
        },
    ),
    Relation(
        "month",
        facts("""
            一月 | January | 二月 | February
            二月 | February | 三月 | March
            三月 | March | 四月 | April
            四月 | April | 五月 | May
            五月 | May | 六月 | June
            六月 | June | 七月 | July
            七月 | July | 八月 | August
            八月 | August | 九月 | September
            九月 | September | 十月 | October
            十月 | October | 十一月 | November
            十一月 | November | 十二月 | December
            十二月 | December | 一月 | January
        """),
        {
            "zh": (
                "{s}的下个月是几月？",
                "{s}之后是几月？",
                "过完{s}是几月？",
                "现在是{s}，下个月是几月？",
                "哪个月紧接在{s}后面？",
                "如果上个月是{s}，这个月是几月？",
                "排在{s}后面的是几月？",
            ),
            "en": (
                "Which month comes after {s}?",
                "What month follows {s}?",
                "It is {s} now. What is next month?",
                "If last month was {s}, what month is it now?",
                "What is the month after {s}?",
                "Name the month that comes right after {s}.",
                "{s} is followed by which month?",
            ),
        },
        {"zh": "{s}的下个月是{o}。", "en": "The month after {s} is {o}."},
        {
            "zh": ("过完{s}就是{o}。", "{s}之后是{o}。"),
            "en": ("{s} is followed by {o}.", "After {s} comes {o}."),
        },
    ),
    Relation(
        "unit",
        facts("""
            1米 | 1 metre | 100 | 100 | 厘米 | centimetres
            1千米 | 1 kilometre | 1000 | 1000 | 米 | metres
            1小时 | 1 hour | 60 | 60 | 分钟 | minutes
            1分钟 | 1 minute | 60 | 60 | 秒 | seconds
            1天 | 1 day | 24 | 24 | 小时 | hours
            1星期 | 1 week | 7 | 7 | 天 | days
            1千克 | 1 kilogram | 1000 | 1000 | 克 | grams
            1吨 | 1 tonne | 1000 | 1000 | 千克 | kilograms
        """),
        {
            "zh": (
                "{s}等于多少{u}？",
                "{s}是多少{u}？",
                "{s}有多少{u}？",
                "把{s}换算成{u}。",
                "多少{u}等于{s}？",
                "你知道{s}合多少{u}吗？",
                "请用{u}来表示{s}。",
            ),
            "en": (
                "How many {u} are in {s}?",
                "How many {u} make {s}?",
                "Convert {s} to {u}.",
                "{s} is how many {u}?",
                "Do you know how many {u} there are in {s}?",
                "What is {s} in {u}?",
                "Express {s} in {u}.",
            ),
        },
        {"zh": "{s}等于{o}{u}。", "en": "{s} is {o} {u}."},
        {
            "zh": ("{o}{u}就是{s}。", "{s}有{o}{u}。"),
            "en": ("{o} {u} make {s}.", "There are {o} {u} in {s}."),
        },
    ),
)
