"""Word tables of the sample task. `data.py` combines them; nothing here depends on anything else."""

NAMES = (
    "Ana Bruno Carla Daniel Elena Felix Greta Hugo Irene Jonas Karin Leo Marta Nadia Oscar Paula Rosa Simon Tessa "
    "Viktor Yusuf Zara Amir Mei Kofi Leila Ravi Sofia Tomas Anton"
).split()
JOBS = "surgeon violinist senator biologist novelist sergeant nurse teacher farmer pilot engineer banker lawyer baker"
JOBS = [f"the {job}" for job in JOBS.split()]
ORGANISATIONS = "city council|bank|university|union|airline|court|ministry|army|church|company|parliament|committee"
ORGANISATIONS = [f"the {organisation}" for organisation in ORGANISATIONS.split("|")]
CITIES = (
    "Lisbon Porto Madrid Seville Rome Turin Paris Lyon Berlin Hamburg Warsaw Oslo Cairo Nairobi Tokyo Lima".split()
)
TIMES = [f"on {day}" for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()]
TIMES += [f"in {month}" for month in "January February March April May June July August September October".split()]

# A line: verbs that are good for their object / verbs that are bad for it / objects; none: a person. A verb: its base,
# past and, if that differs, participle; an underscore stands for a blank.
_TABLE = """
praise praised|commend commended|applaud applauded / criticize criticized|condemn condemned|denounce denounced /
hire hired|recruit recruited / dismiss dismissed|fire fired|sack sacked /
support supported|back backed / oppose opposed|resist resisted /
release released|free freed / arrest arrested|detain detained /
rescue rescued|save saved / abandon abandoned|desert deserted /
welcome welcomed|greet greeted / ignore ignored|snub snubbed /
help helped|assist assisted / hinder hindered|obstruct obstructed /
approve approved|endorse endorsed|accept accepted / reject rejected|turn_down turned_down|veto vetoed \
    / plan budget bill treaty contract proposal
open opened|inaugurate inaugurated / close closed|shut shut / museum library station airport factory clinic
build built|construct constructed|erect erected / demolish demolished|tear_down tore_down torn_down \
    / bridge tower stadium wall theatre monument
hold held|organize organized|stage staged / cancel cancelled|call_off called_off|scrap scrapped \
    / concert festival parade conference tournament ceremony
repair repaired|fix fixed / damage damaged|wreck wrecked / truck bus fence boat engine
"""


def _verbs(text: str) -> list[tuple[str, str, str]]:
    """[(base, past, participle), …]"""
    verbs = [[form.replace("_", " ") for form in verb.split()] for verb in text.split("|")]
    return [(base, past, *(participle or [past])) for base, past, *participle in verbs]


VERBS = [
    (_verbs(good), _verbs(bad), objects.split())
    for good, bad, objects in (line.split("/") for line in _TABLE.strip().splitlines())
]

# What may stand before the base form of a verb, by whether the event then happened.
HAPPENED = ("managed to", "was able to", "did not fail to", "did not hesitate to", "did not forget to", "was quick to")
DID_NOT_HAPPEN = (
    *("did not", "failed to", "refused to", "declined to", "was unable to", "forgot to"),
    "never managed to",
)
# Reports, by whether the clause after "that" is then so.
CONFIRMS = ("confirmed that", "revealed that", "acknowledged that", "did not deny that", "made it clear that")
DENIES = ("denied that", "disputed that", "rejected the claim that", "made it clear that it was untrue that")

SUBORDINATORS = ("although", "while", "after", "before", "even though", "on the day that")
FILLERS = (
    *("The news surprised many people.", "Local newspapers reported the story.", "Few details are known so far."),
    *("The weather was cold and wet.", "Television crews were present.", "Traffic was heavy that day."),
    "An inquiry will begin next week.",
)
