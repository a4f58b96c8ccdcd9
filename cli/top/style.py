"""How `quiesce top` looks, in the words of Textual."""

from typing import Final

CSS: Final = """
Screen { layers: base; }
#title { height: 1; background: $panel; color: $foreground; }
#summary { height: 1; padding: 0 1; }
#runtimes { height: 5; padding: 0 1; border-top: none; color: $foreground; }
#stops { height: auto; padding: 0 1; background: $warning 12%; display: none; }
#tabs { height: 1; background: $panel; }
#main { padding: 0 1; }
.stale #main, .stale #runtimes, .stale #summary, .stale #stops { text-opacity: 45%; }
ModalScreen { align: center middle; background: $background 60%; }
.box { width: 74; max-width: 94%; height: auto; max-height: 90%; background: $surface;
       border: round $primary; padding: 0 1; }
.box.wide { width: 94%; height: 90%; }
.box.wide VerticalScroll { height: 1fr; }
.box OptionList { height: auto; max-height: 12; margin: 1 0 0 0; border: none; background: $surface; }
.box Input { margin: 1 0 0 0; }
.title { text-style: bold; color: $text-primary; margin: 0 0 1 0; }
.keys { color: $text-muted; margin: 1 0 0 0; }
.buttons { height: auto; margin: 1 0 0 0; }
.buttons Button { margin: 0 2 0 0; }
FilterScreen { align: center bottom; background: $background 0%; }
.line { height: auto; background: $surface; border-top: solid $primary; padding: 0 1; }
.line .keys { margin: 0; }
"""
