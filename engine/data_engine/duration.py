"""Times in sentences and tables, by the units that a person would say."""


def duration(seconds: float) -> str:
    """Two units of time at most: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
