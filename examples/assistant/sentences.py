"""The one short sentence that announces an action."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .home import Action, Value

FIXED_SENTENCES = {
    "greeting": "Hello, what can I do for you?",
    "help": "I control lights, heating, locks, blinds, timers, music, sensors and a rover.",
    "identity": "I am the assistant of this home.",
    "thanks": "You are welcome.",
    "goodbye": "Goodbye.",
    "unsupported": "Sorry, I cannot help with that.",
    "unsafe": "Sorry, that would not be safe.",
    "unclear": "Sorry, I did not understand that.",
    "room": "Which room do you mean?",
    "door": "Which door do you mean?",
    "duration": "For how long?",
    "rover_stop": "Stopping the rover.",
    "rover_dock": "Sending the rover to its dock.",
}
TEMPLATES = {
    "turn_on": "Turning on the {room} {device}.",
    "turn_off": "Turning off the {room} {device}.",
    "dim": "Dimming the {room} {device}.",
    "brighten": "Brightening the {room} {device}.",
    "set_brightness": "Setting the {room} {device} to {percent} percent.",
    "set_color": "Setting the {room} {device} to {color}.",
    "set_temperature": "Setting the {room} heating to {value} degrees.",
    "heating_up": "Turning up the {room} heating.",
    "heating_down": "Turning down the {room} heating.",
    "lock": "Locking the {device}.",
    "unlock": "Unlocking the {device}.",
    "query_lock": "Checking the {device} lock.",
    "open": "Opening the {room} {device}.",
    "close": "Closing the {room} {device}.",
    "set_position": "Setting the {room} {device} to {percent} percent.",
    "play": "Playing {media}{place}.",
    "pause": "Pausing the music{place}.",
    "resume": "Resuming the music{place}.",
    "next": "Skipping to the next track{place}.",
    "previous": "Going back to the previous track{place}.",
    "mute": "Muting the music{place}.",
    "volume_up": "Turning up the volume{place}.",
    "volume_down": "Turning down the volume{place}.",
    "set_volume": "Setting the volume{place} to {percent} percent.",
    "query": "Checking the {sensor} in the {room}.",
    "query_state": "Checking the {room} {device}.",
    "rover_move": "Driving the rover {direction} {distance_cm} centimeters.",
    "rover_turn": "Turning the rover {direction} by {degrees} degrees.",
    "rover_goto": "Sending the rover to the {place}.",
}
PLURALS = {"light": "lights", "lamp": "lamps", "fan": "fans", "plug": "plugs", "speaker": "speakers"} | {
    "humidifier": "humidifiers",
    "air_purifier": "air purifiers",
    "tv": "tvs",
    "air_conditioner": "air conditioners",
    "window": "windows",
    "heating": "heating",
}
SPOKEN = {"radio": "the radio", "news": "the news", "podcast": "a podcast", "audiobook": "an audiobook", "co2": "CO2"}


def spoken(value: Value) -> str:
    """Return a slot value as our sentences say it: `living_room` is "living room"."""
    text = str(value)
    return SPOKEN.get(text, text.replace("_", " "))


def sentence(action: Action) -> str:
    """Return the one short sentence that announces an action."""
    name = str(action["action"])
    fixed = next((FIXED_SENTENCES[str(v)] for v in list(action.values())[:2] if v in FIXED_SENTENCES), None)
    if name.startswith("rover") or name in ("ask", "reply", "decline"):
        if fixed is not None:
            return fixed
    elif name.endswith("_timer"):
        return timer_sentence(action)
    if action.get("room") == "all":
        device = str(action["device"])
        return f"{TEMPLATES[name].split(' the ')[0]} all the {PLURALS.get(device, spoken(device))}."
    words = {key: spoken(value) for key, value in action.items()}
    words.setdefault("place", f" in the {words['room']}" if "room" in words else "")
    return TEMPLATES[name].format(**words)


def timer_sentence(action: Action) -> str:
    """Return the sentence of one of the three timer actions, with or without a label."""
    label = f"{action['label']} " if "label" in action else ""
    if action["action"] != "set_timer":
        verb = "Cancelling" if action["action"] == "cancel_timer" else "Checking"
        return f"{verb} the {label}timer."
    unit = next(key for key in ("seconds", "minutes", "hours") if key in action)
    return f"Starting a {action[unit]} {unit[:-1]} {label}timer."
