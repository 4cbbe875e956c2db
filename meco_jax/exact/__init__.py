"""What is solved exactly, each file on those before it.

``equations`` with e^x; ``residuals`` of rounding; ``uplink``, what a device does at a price;
``shares``, what fits; ``duals``, bounds at prices; ``pricing``, a decision's price and cost;
``breakpoints``, ``edge`` and ``relaxation``, the relaxed problem; ``allocation``, a ``Solution``
of a decision; ``schemes``; ``enumeration`` and ``search``, the optimum. Tools: ``twofold``,
``derivatives``, ``sets``.
"""
