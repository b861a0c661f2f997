"""The home the assistant runs: its words for things, its intents and its actions.

An action is a flat dictionary with a fixed key order. Its compact JSON is what the model answers when a request carries
a schema; its sentence (`sentences.py`) is what it answers otherwise. Both depend on the action alone, so both can be
scored exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Value: TypeAlias = str | int
Action: TypeAlias = dict[str, Value]

# Value of a slot -> how people say it. The first surface is the one our own sentences use.
ROOMS: dict[str, tuple[str, ...]] = {
    "kitchen": ("kitchen",),
    "living_room": ("living room", "lounge", "sitting room"),
    "bedroom": ("bedroom",),
    "bathroom": ("bathroom",),
    "hallway": ("hallway", "hall", "corridor"),
    "garage": ("garage",),
    "office": ("office", "study"),
    "garden": ("garden", "yard", "backyard"),
    "dining_room": ("dining room",),
    "nursery": ("nursery", "baby room"),
    "attic": ("attic", "loft"),
    "basement": ("basement", "cellar"),
    "guest_room": ("guest room", "spare room"),
    "laundry_room": ("laundry room", "utility room"),
    "kids_room": ("kids room", "children's room", "playroom"),
    "balcony": ("balcony", "terrace"),
}
DEVICES: dict[str, tuple[str, ...]] = {
    "light": ("light", "lights"),
    "lamp": ("lamp", "lamps"),
    "fan": ("fan", "fans", "ventilator"),
    "heating": ("heating", "heater", "radiator"),
    "tv": ("tv", "television", "telly", "tvs"),
    "humidifier": ("humidifier", "humidifiers"),
    "air_purifier": ("air purifier", "purifier", "air purifiers"),
    "air_conditioner": ("air conditioner", "air conditioning", "ac", "air conditioners"),
    "plug": ("plug", "socket", "outlet", "plugs", "sockets"),
    "speaker": ("speaker", "speakers"),
}
DIMMABLE = {name: DEVICES[name] for name in ("light", "lamp")}
COVERS: dict[str, tuple[str, ...]] = {
    "blinds": ("blinds", "blind", "shades"),
    "curtains": ("curtains", "curtain", "drapes"),
    "shutters": ("shutters", "shutter"),
    "window": ("window", "windows"),
}
DOORS: dict[str, tuple[str, ...]] = {
    "front_door": ("front door", "main door"),
    "back_door": ("back door", "rear door"),
    "side_door": ("side door",),
    "garage_door": ("garage door",),
    "patio_door": ("patio door",),
    "cellar_door": ("cellar door", "basement door"),
    "balcony_door": ("balcony door",),
    "garden_gate": ("garden gate", "gate"),
}
COLORS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("red", "green", "blue", "yellow", "orange", "pink", "white")},
    "purple": ("purple", "violet"),
    "turquoise": ("turquoise", "cyan"),
    "warm_white": ("warm white",),
    "cold_white": ("cold white", "cool white"),
}
MEDIA: dict[str, tuple[str, ...]] = {
    "music": ("music", "songs"),
    "jazz": ("jazz", "jazz music"),
    "rock": ("rock", "rock music"),
    "pop": ("pop", "pop music"),
    "classical": ("classical music", "classical"),
    "blues": ("blues", "blues music"),
    "techno": ("techno", "techno music"),
    "radio": ("radio",),
    "news": ("news",),
    "podcast": ("podcast", "podcasts"),
    "audiobook": ("audiobook", "audio book"),
}
SENSORS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "humidity": ("humidity", "humidity level"),
    "air_quality": ("air quality",),
    "motion": ("motion", "movement"),
    "noise": ("noise level", "noise"),
    "brightness": ("brightness", "light level"),
    "co2": ("co2", "co2 level", "carbon dioxide"),
    "smoke": ("smoke", "smoke level"),
}
HOW: dict[str, tuple[str, ...]] = {  # "how hot is it"
    "temperature": ("hot", "warm", "cold", "chilly"),
    "humidity": ("humid", "damp", "dry"),
    "noise": ("loud", "noisy", "quiet"),
    "brightness": ("bright", "dark"),
}
SEEN: dict[str, tuple[str, ...]] = {"motion": ("motion", "movement"), "smoke": ("smoke",)}  # "is there any smoke"
LABELS: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in (
        *("pasta", "eggs", "pizza", "tea", "laundry", "bread", "rice", "workout", "nap", "homework", "cake"),
        *("potatoes", "chicken", "meditation", "soup"),
    )
}
MOVES: dict[str, tuple[str, ...]] = {
    "forward": ("forward", "forwards", "ahead", "straight ahead"),
    "backward": ("backward", "backwards", "back"),
}
TURNS: dict[str, tuple[str, ...]] = {"left": ("left", "to the left"), "right": ("right", "to the right")}

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "room": ROOMS,
    "device": DEVICES,
    "dimmable": DIMMABLE,
    "cover": COVERS,
    "door": DOORS,
    "color": COLORS,
    "media": MEDIA,
    "sensor": SENSORS,
    "how": HOW,
    "seen": SEEN,
    "label": LABELS,
    "move": MOVES,
    "turn": TURNS,
    "all": {"all": ()},  # every room: never said as a slot
}
# Slots that hold a whole number: lowest and highest value, both included.
NUMBERS: dict[str, tuple[int, int]] = {
    "percent": (0, 100),
    "temp": (5, 30),
    "minutes": (1, 999),
    "seconds": (5, 9999),
    "hours": (1, 99),
    "cm": (5, 9999),
    "angle": (5, 3600),
}
OPPOSITES = {
    a: b
    for pair in (
        ("turn_on", "turn_off"),
        ("lock", "unlock"),
        ("open", "close"),
        ("dim", "brighten"),
        ("heating_up", "heating_down"),
        ("volume_up", "volume_down"),
        ("pause", "resume"),
    )
    for a, b in (pair, pair[::-1])
}


@dataclass(frozen=True, slots=True)
class Intent:
    """One kind of request: the name of its action, what is fixed in it, and the slot behind each remaining key."""

    action: str
    slots: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Value] = field(default_factory=dict)

    def build(self, values: Mapping[str, Value]) -> Action:
        """Return the action with its keys in the documented order: fixed keys, then slots."""
        return {"action": self.action, **self.fixed, **{key: values[slot] for key, slot in self.slots.items()}}


# Requests that lack a slot, and the slot the assistant asks for.
MISSING = {
    **dict.fromkeys(
        (
            *(
                "on",
                "off",
                "open",
                "close",
                "dim",
                "brighten",
                "brightness",
                "color",
                "temperature",
                "warmer",
                "cooler",
            ),
            *("sensor", "how", "state"),
        ),
        "room",
    ),
    **dict.fromkeys(("lock", "unlock", "lock_query"), "door"),
    **dict.fromkeys(("timer", "label"), "duration"),
}
ROOM = {"room": "room"}
DEVICE = {"device": "device", "room": "room"}
COVER = {"device": "cover", "room": "room"}
DIM = {"device": "dimmable", "room": "room"}
INTENTS: dict[str, Intent] = {
    "on": Intent("turn_on", DEVICE),
    "off": Intent("turn_off", DEVICE),
    "dark": Intent("turn_on", ROOM, {"device": "light"}),
    "glare": Intent("turn_off", ROOM, {"device": "light"}),
    "on_all": Intent("turn_on", {"device": "device"}),
    "off_all": Intent("turn_off", {"device": "device"}),
    "dim": Intent("dim", DIM),
    "brighten": Intent("brighten", DIM),
    "brightness": Intent("set_brightness", {**DIM, "percent": "percent"}),
    "color": Intent("set_color", {**DIM, "color": "color"}),
    "temperature": Intent("set_temperature", {**ROOM, "value": "temp"}),
    "warmer": Intent("heating_up", ROOM),
    "cooler": Intent("heating_down", ROOM),
    "lock": Intent("lock", {"device": "door"}),
    "unlock": Intent("unlock", {"device": "door"}),
    "lock_query": Intent("query_lock", {"device": "door"}),
    "open": Intent("open", COVER),
    "close": Intent("close", COVER),
    "open_all": Intent("open", {"device": "cover"}),
    "close_all": Intent("close", {"device": "cover"}),
    "position": Intent("set_position", {**COVER, "percent": "percent"}),
    **{f"timer_{unit}": Intent("set_timer", {unit: unit}) for unit in ("seconds", "minutes", "hours")},
    **{
        f"label_{unit}": Intent("set_timer", {"label": "label", unit: unit}) for unit in ("seconds", "minutes", "hours")
    },
    "timer_cancel": Intent("cancel_timer"),
    "label_cancel": Intent("cancel_timer", {"label": "label"}),
    "timer_query": Intent("query_timer"),
    "label_query": Intent("query_timer", {"label": "label"}),
    "play": Intent("play", {"media": "media"}),
    "play_in": Intent("play", {"media": "media", **ROOM}),
    **{name: Intent(name) for name in ("pause", "resume", "next", "previous", "mute", "volume_up", "volume_down")},
    **{
        f"{name}_in": Intent(name, ROOM)
        for name in ("pause", "resume", "next", "previous", "mute", "volume_up", "volume_down")
    },
    "volume": Intent("set_volume", {"percent": "percent"}),
    "volume_in": Intent("set_volume", {**ROOM, "percent": "percent"}),
    "sensor": Intent("query", {"sensor": "sensor", **ROOM}),
    "how": Intent("query", {"sensor": "how", **ROOM}),
    "seen": Intent("query", {"sensor": "seen", **ROOM}),
    "anyone": Intent("query", ROOM, {"sensor": "motion"}),
    "state": Intent("query_state", DEVICE),
    "cover_state": Intent("query_state", COVER),
    "move": Intent("rover_move", {"direction": "move", "distance_cm": "cm"}),
    "turn": Intent("rover_turn", {"direction": "turn", "degrees": "angle"}),
    "stop": Intent("rover_stop"),
    "dock": Intent("rover_dock"),
    "goto": Intent("rover_goto", {"place": "room"}),
    **{f"ask:{name}": Intent("ask", {}, {"slot": slot}) for name, slot in MISSING.items()},
    **{topic: Intent("reply", {}, {"topic": topic}) for topic in ("greeting", "help", "identity", "thanks", "goodbye")},
    **{reason: Intent("decline", {}, {"reason": reason}) for reason in ("unsupported", "unsafe", "unclear")},
}
for _name in ("on_all", "off_all", "open_all", "close_all"):
    INTENTS[_name] = Intent(INTENTS[_name].action, {**INTENTS[_name].slots, "room": "all"})


def compact(action: Action) -> str:
    """Return the action as the model writes it: JSON without spaces, keys in order."""
    return json.dumps(action, separators=(",", ":"))


def pairs(action: Action) -> tuple[str, ...]:
    """Return every pair of slot values in an action, such as "device=light room=garage".

    The action's name and the room "all" are no slots. Two requests with the same pair share it whatever their wording.
    """
    items = [f"{k}={v}" for k, v in action.items() if k not in ("action", "slot", "topic", "reason") and v != "all"]
    return tuple(f"{a} {b}" for i, a in enumerate(items) for b in items[i + 1 :])
