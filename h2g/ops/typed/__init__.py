"""One weight per type over type-sorted rows."""

from h2g.ops.typed.api import typed_linear as typed_linear
