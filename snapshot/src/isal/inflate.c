/* The few calls of ISA-L that a gzip decoder needs, free of the layout of its state, which the
 * header alone knows. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <isa-l/igzip_lib.h>

/* A state at the start of a gzip member, or NULL without memory. */
struct inflate_state *crated_isal_new(void)
{
	struct inflate_state *state = malloc(sizeof(*state));

	if (state) {
		isal_inflate_init(state);
		state->crc_flag = ISAL_GZIP;
	}
	return state;
}

/* Back to the start of a member. */
void crated_isal_reset(struct inflate_state *state)
{
	isal_inflate_reset(state);
	state->crc_flag = ISAL_GZIP;
}

void crated_isal_free(struct inflate_state *state)
{
	free(state);
}

/* Decodes from in to out and sets both lengths to what was used of them. Returns 1 at the end of
 * the member, its checksum verified, 0 before it, and a negative or larger value for an error. */
int crated_isal_step(struct inflate_state *state, const uint8_t *in, uint32_t *in_len,
		     uint8_t *out, uint32_t *out_len)
{
	int status;

	state->next_in = (uint8_t *)in;
	state->avail_in = *in_len;
	state->next_out = out;
	state->avail_out = *out_len;
	status = isal_inflate(state);
	*in_len -= state->avail_in;
	*out_len -= state->avail_out;
	if (status < 0 || status == ISAL_NEED_DICT)
		return status;
	return state->block_state == ISAL_BLOCK_FINISH;
}
