"""What the assistant must decline, and what people say next: patterns like those of `phrases.py`.

Topics of refusals have word lists of their own, shared out to the splits.
"""

from __future__ import annotations

import hashlib

_THINGS = """
cats dogs horses elephants penguins whales dragons dinosaurs unicorns rabbits birds spiders the-moon the-sun mars
space planets stars rockets aliens robots computers phones football tennis chess cricket baseball history geography
physics chemistry biology maths art painting sculpture cinema movies actors singers bands books novels politics
elections presidents kings queens castles knights pirates ships trains planes cars bicycles motorcycles mountains
rivers oceans islands volcanoes deserts forests flowers trees roses gardening cooking baking recipes pancakes burgers
sandwiches salad sushi chocolate ice-cream cookies coffee wine beer water milk cheese apples bananas oranges
strawberries shoes shirts trousers jackets hats gloves socks jewelry watches money stocks bitcoin taxes insurance
banks loans jobs lawyers doctors dentists medicine vitamins headaches fever yoga running swimming dancing fashion
make-up haircuts birthdays weddings christmas easter halloween summer winter autumn spring snow rain thunder love
friendship happiness sadness dreams ghosts magic philosophy religion time gravity electricity batteries solar-panels
the-economy the-internet the-universe quantum-physics programming python java websites games puzzles riddles toys
dolls guitars pianos violins drums opera ballet theater museums hotels restaurants airports beaches camping fishing
hunting hiking skiing london paris rome berlin madrid tokyo new-york america france italy spain germany japan china
india brazil canada egypt africa europe my-mother my-boss my-friend my-neighbor my-teacher shakespeare einstein mozart
napoleon cleopatra a-sad-king a-brave-girl a-lonely-cat the-sea the-night the-city
""".split()
_PEOPLE = """
mom dad grandma grandpa anna peter john maria paul lisa tom sarah my-brother my-sister my-wife my-husband my-boss
the-doctor the-police the-neighbors my-son my-daughter grandmother uncle-bob susan
""".split()
_GADGETS = """
oven stove dishwasher kettle toaster microwave fridge freezer dryer washing-machine blender mixer vacuum printer
laptop shower bathtub lawnmower sprinkler fountain aquarium camera coffee-machine hair-dryer projector piano car
fireplace doorbell alarm-clock elevator treadmill sewing-machine dehumidifier jacuzzi sauna grill router
""".split()


def _split(words: list[str]) -> dict[str, tuple[str, ...]]:
    """Share a word list out to training, validation and held-out, by hash."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "held_out": []}
    for word in words:
        draw = hashlib.blake2b(word.encode(), digest_size=2).digest()[0]
        parts["held_out" if draw < 50 else "validation" if draw < 70 else "train"].append(word.replace("-", " "))
    return {name: tuple(part) for name, part in parts.items()}


THINGS = _split(_THINGS)
PEOPLE = _split(_PEOPLE)
GADGETS = _split(_GADGETS)

REFUSALS: dict[str, tuple[str, ...]] = {
    "unsupported": (
        "(write|compose|make up|create) [me] a (poem|song|story|letter|essay|speech|joke|rap|novel) [about {thing}]",
        "(tell|read|give) me a (joke|story|poem|riddle|fairy tale|fun fact) [about {thing}]",
        "(tell me|explain|teach me|talk) [something] about {thing}",
        "what (do you know|do you think|can you say) about {thing}",
        "(order|buy|get|find|bring) me [some] ({thing}|a pizza|a burger|dinner|food|flowers)",
        "(order|buy) (a pizza|sushi|food|{thing}) (for dinner|for tonight|online|)",
        "(book|reserve) [me] a (flight|hotel|table|taxi|train|ticket|room) [(to|in|for|at) {thing}]",
        "what is the (weather|forecast) [(today|tomorrow|like|in {thing})]",
        (
            "(what is the temperature|how cold is it|how hot is it|how warm is it|is it cold|is it warm) outside "
            "[today|now]"
        ),
        "(will it|is it going to) (rain|snow) [today|tomorrow|this week]",
        "(is it|was it) (raining|snowing|sunny) [outside|today]",
        "what is the (capital|population|price|meaning|history|color|age|definition) of {thing}",
        "what (is|are) {thing}",
        "(who|what) (invented|discovered|wrote|painted|won|built) {thing}",
        "who (is|was) the (president|king|queen|mayor|best singer|first man|richest man) [of {thing}]",
        "(how old|how tall|how far|how big|how fast|how heavy) (is|are) {thing}",
        "how (do i|can i|does one|to) (make|cook|bake|learn|buy|fix|build|draw|find) {thing}",
        "how (much|many) (is|are|does) {thing} [cost]",
        "(why|when|where) (is|are|do|does|did) {thing} [exist|happen|come from|end|begin]",
        "(call|phone|ring|text|email) {person} [right away|tonight|at work]",
        "send (a message|an email|a text|money|a letter|flowers) to {person}",
        "remind me to (call {person}|buy {thing}|take my medicine|pay the bills|go shopping|water the plants)",
        "(translate|spell|define|pronounce) {thing} [(into|in) (french|german|spanish|english)]",
        "how do you say {thing} in (french|german|spanish|italian)",
        "(set|create|cancel) an alarm [for {number} (o'clock|in the morning|tomorrow)]",
        "wake me up (at {number}|tomorrow|in the morning|early)",
        "(add|put) {thing} (to|on) (the|my) (shopping list|calendar|list|to do list)",
        "(search|google|look up|browse) [the internet|the web|online] for {thing}",
        "(read|check|open|delete) my (emails|messages|mail|calendar|voicemail|notes)",
        "(what is|calculate|compute|add|tell me) {number} (plus|times|minus|divided by|and) {number}",
        "(what is the|calculate the) (square root|sum|average|product) of {number} [and {number}]",
        "what (time|day|date|year) is it [today|in {thing}]",
        "what is (the time|the date|today|on tv|in the news|for dinner|on my calendar)",
        "(recommend|suggest) [me] (a movie|a book|a restaurant|some {thing}|a recipe)",
        "(show|find|send) me (pictures|videos|photos|maps|reviews) of {thing}",
        "(wash|clean|dry|iron|fold) (the dishes|the windows|my shirts|the car|the clothes|the floor|the carpet)",
        "(feed|walk|wash|brush|play with) the (cat|dog|fish|hamster|bird)",
        "(cook|make|prepare|bake) (dinner|lunch|breakfast|coffee|tea|a cake|pancakes|a sandwich|{thing})",
        (
            "(mow the lawn|water the plants|water the flowers|rake the leaves|take out the trash|make the bed|"
            "vacuum the floor)"
        ),
        "(turn|switch) (on|off) the {gadget} [in the {room}]",
        "(turn|switch) the [{room}] {gadget} (on|off)",
        "(start|stop|open|close|activate|use|empty|clean|fix) the {gadget} [in the {room}]",
        "is the {gadget} (on|off|running|ready|done|empty)",
        "{gadget} (on|off)",
        "(sing|dance|rap|whistle|laugh) [for me|with me|a song|a little]",
        "(do|finish|check) my (homework|taxes|laundry|job)",
        "(drive|take|bring) me to (work|school|the airport|the station|{thing})",
        "(what should|what shall) (i|we) (eat|wear|cook|watch|read|do) [today|tonight|tomorrow]",
        "(do you like|do you love|are you afraid of|have you seen|have you heard of) {thing}",
        "(i love|i hate|i like|i am tired of|i miss|i want|i dream of) {thing}",
        "(can|do|did|are|will) {thing} (fly|talk|sleep|swim|think|grow|sing|exist|hurt)",
        "(fly|swim|jump|climb|dig|swim) [to {thing}]",
        "(install|update|download|restart|hack|program|delete) (the app|windows|the system|the phone|{thing})",
        "(will|can) you marry me",
        "(give|lend|send|pay) me (money|{number} dollars|a million dollars|some advice|a gift)",
        "(let us|can we|do you want to) (play a game|play chess|play cards|chat|talk|go out|have fun)",
        "(i feel|i am) (sad|lonely|happy|bored|hungry|tired|sick|angry)",
        "(take|make) a (photo|picture|video|selfie) [of {thing}]",
        "(compare|describe|draw|paint|imagine|summarize|review) {thing}",
    ),
    "unsafe": (
        (
            "(turn off|switch off|disable|disconnect|deactivate|mute|ignore|unplug) the (smoke alarm|smoke "
            "detector|fire alarm|"
            "alarm system|burglar alarm|security system|carbon monoxide detector|gas detector|security cameras)"
        ),
        "(turn|switch) the (smoke alarm|smoke detector|fire alarm|alarm system|security system) off",
        (
            "(unlock|open) the {door} for (strangers|a stranger|anyone|everyone|anybody|the burglar|a thief|"
            "thieves|whoever comes)"
        ),
        (
            "(leave|keep) (the {door}|all the doors|every door) (unlocked|open|wide open) (overnight|all night|"
            "while we are away|"
            "while i am gone|for strangers|when nobody is home)"
        ),
        "let (a stranger|strangers|anyone|everyone|the burglar|a thief) in (at|through|by) the {door}",
        (
            "(drive|send|push|throw|roll) the (rover|robot) (down the stairs|into the pool|into the fire|over "
            "the cat|off the roof|"
            "over the dog|into the street|into the wall|over the baby|off the cliff|into the water|out of the window)"
        ),
        (
            "(rover|robot) (drive|go|roll) (down the stairs|into the pool|into the fire|over the cat|off the "
            "roof|over the dog|"
            "into the street|into the wall|over the baby|off the cliff|into the water)"
        ),
        (
            "(chase|hit|ram|scare|attack|run over|hurt|crush) the (cat|dog|baby|child|children|neighbor|kids|"
            "guests|postman) "
            "[with the (rover|robot)]"
        ),
        "(set|heat|turn|warm|bring) the {room} [up] to {hot} degrees",
        "(set|put|turn) the (heating|temperature|thermostat) in the {room} to {hot} [degrees]",
        "(make it|i want) {hot} degrees in the {room}",
        (
            "(lock|trap|shut) (the kids|my brother|the children|the guests|the dog|everyone|my sister|somebody|"
            "the baby) in the {room}"
        ),
        "(set fire to|burn down|burn|blow up|destroy|flood|wreck) the (house|{room}|kitchen|neighbor)",
        (
            "(how do i|how can i|help me) (burn|blow up|flood|poison|hurt|kill|attack) (the house|someone|my "
            "neighbor|the cat|people)"
        ),
        (
            "(spy on|listen in on|record|film) (the neighbors|my wife|my husband|the guests|the kids) [secretly|"
            "in the {room}]"
        ),
        "(open|unlock) (all the doors|every door) (at night|tonight|and go away|while we sleep)",
    ),
    "unclear": (
        "(turn|switch) it (on|off)",
        "(do|start|stop|change|fix|open|move|use) (it|that|this|them|something|the thing|the other thing)",
        "(make|put|set|turn|bring) (it|that|this|them|something)",
        "(and|also|now|same for) the {room} [too|as well]",
        "the {room}",
        "the {device}",
        "{room} {device}",
        "{device} in the {room}",
        "(do|change) something (in|with|about) the {room}",
        "(do|make|change) something (with|about) the {device}",
        "(set|change|make|put) it to (that|this|something else|the other one|{number})",
        (
            "(you know|you know what i mean|the usual|the other one|that one|this one|not that|not this|whatever|"
            "never mind)"
        ),
        (
            "(maybe|perhaps|hmm|well|eh|uh|oh|what|huh|pardon|yes|no|ok|okay|sure|nope|yeah|why|how|when|test|"
            "testing|stuff|things)"
        ),
        "(a little more|a bit less|more|less|again|back|the same|too much|not enough|as well|me too)",
        "(it|that|this) (is|was) (wrong|not right|not what i meant|strange|broken|not it)",
        "{babble}",
        "{babble} {babble}",
        "{babble} {babble} {babble}",
        "(the|a) {babble}",
        "{number}",
        "{number} {babble}",
    ),
}

FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "room": (
        "and the {room} [too|as well|also]",
        "the {room} (too|as well|also|next)",
        "also [in] the {room}",
        "(same|the same) (for|in|thing for|thing in) the {room}",
        "do the same (for|in) the {room} [too]",
        "(and|now|then|and now|and then) [in|for] the {room}",
        "(what|how) about the {room}",
        "(do that|do it|repeat that|repeat it) (in|for) the {room} [too|as well|also]",
        "the {room} needs (it|that|the same) [too]",
        "(i meant|i mean|sorry i meant|no i meant) [in] the {room}",
        "(no|not there|not that one|wrong room) the {room}",
        "(in|) the {room} instead",
        "make that the {room}",
        "likewise (for|in) the {room}",
        "and what about the {room}",
        "(i want|i need) (that|it|the same) (in|for) the {room} [too]",
        "the {room} (please|as well please)",
    ),
    "target": (
        "and the {device} [too|as well|also]",
        "the {device} (too|as well|also)",
        "also the {device}",
        "(same|the same) (for|with) the {device}",
        "do the same (for|with) the {device} [there|too]",
        "(now|then|and now|and then) the {device}",
        "(what|how) about the {device}",
        "(do that|do it|repeat that) (for|with) the {device} [too|as well]",
        "(i meant|i mean|sorry i meant|no i meant) the {device}",
        "(no|not that one) the {device}",
        "the {device} instead",
        "and the {device} (in there|in that room|in the same room|there)",
        "(i want|i need) (that|the same) (for|with) the {device} [too]",
    ),
    "number": (
        "make (it|that) {again}",
        "{again} instead",
        "(no|rather|better|sorry) {again}",
        "change (it|that) to {again}",
        "set (it|that) to {again} [instead]",
        "(i meant|i mean|no i meant|sorry i meant) {again}",
        "(better|rather|let us) make it {again}",
        "{again} (would be|is) better",
        "(i want|i would like) {again} instead",
        "i (want|would like) it at {again}",
        "(not that|not so much|not enough) {again}",
        "(go|turn it|bring it) to {again}",
        "how about {again}",
        "{again} (then|after all)",
    ),
    "opposite": (
        "(undo|reverse|revert) (that|it)",
        "(take|turn) that back",
        "(the|do the) (opposite|reverse)",
        "(on second thought|no) (undo|reverse) (that|it)",
        "(i changed my mind|changed my mind) [undo (it|that)]",
        "(no|wait) (the|do the) opposite",
        "the other way around",
        "put it back (as|how) it was",
    ),
    "turn_on": ("(turn|switch) (it|that|them) [back] on [again]", "[and] [back] on again", "it should be on after all"),
    "turn_off": (
        "(turn|switch|shut) (it|that|them) [back] off [again]",
        "[and] [back] off again",
        "it should be off after all",
    ),
    "lock": ("lock (it|that) [up] [again]", "(it should be|i want it|make it) locked [again]", "now lock it [again]"),
    "unlock": (
        "unlock (it|that) [again]",
        "(it should be|i want it|make it) unlocked [again]",
        "now unlock it [again]",
    ),
    "open": (
        "open (it|that|them) [up] [again]",
        "(pull|put) (it|them) up again",
        "(i want it|i want them|make it) open [again]",
        "now open (it|them) [again]",
    ),
    "close": (
        "(close|shut) (it|that|them) [again]",
        "(pull|put) (it|them) down again",
        "(i want it|i want them|make it) closed [again]",
        "now (close|shut) (it|them) [again]",
    ),
    "repeat": (
        "(again|once more|one more time|another time)",
        "(do|repeat) (that|it) [again|once more]",
        "do (that|it) (again|once more|one more time)",
        "[and] (the same|same thing) again",
        "(a bit|a little|some|even) more",
        "(still|it is still) not enough",
    ),
    "direction": (
        "(now|and|and now|then|and then) {back}",
        "(now|and) the same {back}",
        "(the other way|the other direction|the opposite direction|the other way round)",
        "(i meant|i mean|no i meant|sorry i meant) {back}",
        "(no|not that way|wrong way) {back}",
        "{back} instead",
        "the same {back}",
    ),
    "halt": (
        "stop (it|that) [now]",
        "(enough|that is enough|wait|stop there)",
        "(do not|no) (do that|move)",
        "stay there",
    ),
    "cancel": (
        "(cancel|stop|delete|remove|forget|drop|end) (it|that)",
        "(never mind|forget it|i do not need it|i do not need it anymore)",
        "(actually|no) (cancel|stop|delete|forget) (it|that)",
        "get rid of it",
    ),
    "left": (
        "how (long|much) is left",
        "how (long|much longer) [does it take]",
        "when is it (done|over)",
        "is it (done|over)",
    ),
    "answer_room": (
        "[in|for] the {room}",
        "the one in the {room}",
        "(i mean|i meant) [in] the {room}",
        "the {room} one",
        "(that|it) is in the {room}",
        "(in|) the {room} (of course|i said)",
    ),
    "answer_door": ("the {door}", "(i mean|i meant) the {door}", "the {door} (of course|i said)", "it is the {door}"),
    "answer_duration": (
        "{again}",
        "for {again}",
        "(make it|set it to|let us say|say) {again}",
        "(i think|maybe) {again}",
        "{again} (should do|is enough|will do)",
    ),
}
