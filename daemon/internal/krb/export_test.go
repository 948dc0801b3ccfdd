package krb

// Settle waits for what the engine does without anybody waiting for it.
func (e *Engine) Settle() { e.flying.Wait() }
