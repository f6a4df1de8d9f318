"""Templates: the format of turns in which a generator is trained, and which travels with it."""

from lorage_jax.data.templates.chat import ChatTemplate as ChatTemplate
from lorage_jax.data.templates.chat import chosen_kind as chosen_kind
from lorage_jax.data.templates.chat import has_chat_template as has_chat_template
from lorage_jax.data.templates.fit import fit_context as fit_context
from lorage_jax.data.templates.fit import fit_prompt as fit_prompt
from lorage_jax.data.templates.fit import fit_query as fit_query
from lorage_jax.data.templates.plain import PlainTemplate as PlainTemplate
from lorage_jax.data.templates.plain import cloud_prompt as cloud_prompt
from lorage_jax.data.templates.plain import edge_prompt as edge_prompt
from lorage_jax.data.templates.plain import edge_prompt_with_system as edge_prompt_with_system
from lorage_jax.data.templates.plain import edge_target as edge_target
from lorage_jax.data.templates.plain import encode_target as encode_target
from lorage_jax.data.templates.plain import few_shot_prompt as few_shot_prompt
from lorage_jax.data.templates.template import NEWEST as NEWEST
from lorage_jax.data.templates.template import Conversation as Conversation
from lorage_jax.data.templates.template import Message as Message
from lorage_jax.data.templates.template import Template as Template
from lorage_jax.data.templates.template import TemplateKind as TemplateKind
from lorage_jax.data.templates.template import check_messages as check_messages
from lorage_jax.data.templates.template import is_messages as is_messages
from lorage_jax.data.templates.template import question as question
from lorage_jax.data.templates.tokens import encode as encode
from lorage_jax.data.templates.tokens import encode_marked as encode_marked
from lorage_jax.data.templates.tokens import own_bos as own_bos
