"""Word tables of the sample task. `data.py` combines them; nothing here depends on anything else."""

NAMES = (
    "Ana Bruno Carla Daniel Elena Felix Greta Hugo Irene Jonas Karin Leo Marta Nadia Oscar Paula Rosa Simon Tessa "
    "Viktor Yusuf Zara Amir Mei Kofi Leila Ravi Sofia Tomas Anton"
).split()
JOBS = (
    "surgeon violinist senator biologist novelist sergeant nurse teacher farmer pilot engineer banker lawyer baker"
).split()
ORGANISATIONS = (
    "city council|bank|university|union|airline|court|ministry|army|church|company|parliament|committee".split("|")
)
CITIES = (
    "Lisbon Porto Madrid Seville Rome Turin Paris Lyon Berlin Hamburg Warsaw Oslo Cairo Nairobi Tokyo Lima".split()
)
TIMES = [f"on {day}" for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()]
TIMES += [f"in {month}" for month in "January February March April May June July August September October".split()]


def _verbs(text: str) -> list[tuple[str, str, str]]:
    """`praise praised praised|…` -> [(base, past, participle), …]; an underscore stands for a blank."""
    return [tuple(form.replace("_", " ") for form in verb.split()) for verb in text.split("|")]


# (verbs that are good for their object, verbs that are bad for it, objects; none: a person)
VERBS = [
    (_verbs(good), _verbs(bad), objects.split())
    for good, bad, objects in (
        (
            "praise praised praised|commend commended commended|applaud applauded applauded",
            "criticize criticized criticized|condemn condemned condemned|denounce denounced denounced",
            "",
        ),
        (
            "hire hired hired|recruit recruited recruited",
            "dismiss dismissed dismissed|fire fired fired|sack sacked sacked",
            "",
        ),
        ("support supported supported|back backed backed", "oppose opposed opposed|resist resisted resisted", ""),
        ("release released released|free freed freed", "arrest arrested arrested|detain detained detained", ""),
        ("rescue rescued rescued|save saved saved", "abandon abandoned abandoned|desert deserted deserted", ""),
        ("welcome welcomed welcomed|greet greeted greeted", "ignore ignored ignored|snub snubbed snubbed", ""),
        ("help helped helped|assist assisted assisted", "hinder hindered hindered|obstruct obstructed obstructed", ""),
        (
            "approve approved approved|endorse endorsed endorsed|accept accepted accepted",
            "reject rejected rejected|turn_down turned_down turned_down|veto vetoed vetoed",
            "plan budget bill treaty contract proposal",
        ),
        (
            "open opened opened|inaugurate inaugurated inaugurated",
            "close closed closed|shut shut shut",
            "museum library station airport factory clinic",
        ),
        (
            "build built built|construct constructed constructed|erect erected erected",
            "demolish demolished demolished|tear_down tore_down torn_down",
            "bridge tower stadium wall theatre monument",
        ),
        (
            "hold held held|organize organized organized|stage staged staged",
            "cancel cancelled cancelled|call_off called_off called_off|scrap scrapped scrapped",
            "concert festival parade conference tournament ceremony",
        ),
        (
            "repair repaired repaired|fix fixed fixed",
            "damage damaged damaged|wreck wrecked wrecked",
            "truck bus fence boat engine",
        ),
    )
]

# What may stand before the base form of a verb, by whether the event then happened.
HAPPENED = ("managed to", "was able to", "did not fail to", "did not hesitate to", "did not forget to", "was quick to")
DID_NOT_HAPPEN = (
    "did not",
    "failed to",
    "refused to",
    "declined to",
    "was unable to",
    "forgot to",
    "never managed to",
)
# Reports, by whether the clause after "that" is then so.
CONFIRMS = ("confirmed that", "revealed that", "acknowledged that", "did not deny that", "made it clear that")
DENIES = ("denied that", "disputed that", "rejected the claim that", "made it clear that it was untrue that")

SUBORDINATORS = ("although", "while", "after", "before", "even though", "on the day that")
FILLERS = (
    "The news surprised many people.",
    "Local newspapers reported the story.",
    "Few details are known so far.",
    "The weather was cold and wet.",
    "Television crews were present.",
    "Traffic was heavy that day.",
    "An inquiry will begin next week.",
)
