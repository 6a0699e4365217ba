"""What a run says about chat templates: --chat_template, and --chat_template_kwargs or a judge's. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ChatSettings:
    """In the place of, or besides, what a checkpoint's own chat template says."""

    template: str | None = None
    """text of a template, in the place of the checkpoint's own"""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    """variables of the template, for example {"enable_thinking": false}"""
    flag: str = "--chat_template_kwargs"
    """which gave them; for messages"""

    def __bool__(self) -> bool:
        return self.template is not None or bool(self.kwargs)


NO_CHAT_SETTINGS = ChatSettings()
