/* libseqcls: runs recurrent layers and sequence classifiers of seqcls_fast without torch and without Python.
 *
 * seqcls_fast.export.to_runtime(model, "model.sfm") writes the file of a model. A program opens it once, makes a stream
 * for each group of sequences that it follows, and feeds the streams step by step or in chunks. A sequence has the same
 * bits however it is cut, and those of the module in evaluation with the same kernels. Two kernels (seqcls_open() says
 * which there are) may differ in the last bits.
 *
 * Once a stream is made, its functions allocate nothing, take no lock and make no system call. A model may be used by
 * any number of threads at a time, a stream by one at a time. No exception leaves the library. After an error a handle
 * or a description that a function was to write is null or all zeros.
 */
#ifndef SEQCLS_H
#define SEQCLS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#if defined(__GNUC__)
#define SEQCLS_API __attribute__((visibility("default")))
#else
#define SEQCLS_API
#endif

#define SEQCLS_VERSION 1 /* of this interface, and the latest version of a file that it reads */

typedef enum {
  SEQCLS_OK = 0,
  SEQCLS_BAD_ARGUMENT = 1,   /* a handle, size, pointer or value that the function does not take; nothing was changed */
  SEQCLS_NO_FILE = 2,        /* the file cannot be opened */
  SEQCLS_BAD_FILE = 3,       /* the file is not one of to_runtime(), or is damaged */
  SEQCLS_UNKNOWN_PART = 4,   /* the file is of a later version, or has a part that this library does not know */
  SEQCLS_NOT_STREAMABLE = 5, /* the model needs whole sequences; the sentence says why */
  SEQCLS_NO_MEMORY = 6
} seqcls_status;

/* The sentence that belongs to the last error of the calling thread. */
SEQCLS_API const char* seqcls_error(void);

/* ---- Models ------------------------------------------------------------------------------------------------------ */

typedef struct seqcls_model seqcls_model;

/* Opens a file, and checks all of it before anything is used. `isa` names the kernels: "auto" or NULL for the fastest
 * that this CPU has, else one of "base", "avx2", "avx512" and "avx512_bf16", on ARM of "base", "neon" and "neon_bf16".
 * The file is mapped into memory: while the model, or a stream that was made from it, is open, it may be replaced by
 * another file or removed, but not written to. */
SEQCLS_API seqcls_status seqcls_open(const char* path, const char* isa, seqcls_model** model);

/* The same for a file in memory, aligned to 8 bytes. It must stay as it is while the model, or a stream that was made
 * from it, is open, since both read some of the weights there. */
SEQCLS_API seqcls_status seqcls_open_memory(const void* data, size_t size, const char* isa, seqcls_model** model);

/* Gives a model back. Streams that were made from it stay usable. NULL is allowed. */
SEQCLS_API void seqcls_close(seqcls_model* model);

typedef struct {
  const char* cell;   /* of the layers, such as "lstm"; all strings live as long as the model */
  const char* dtype;  /* of the weights: "float32" or "bfloat16" */
  const char* isa;    /* the kernels that run it */
  const char* about;  /* the description of the model in its file, as JSON */
  int64_t features;   /* numbers in a step of the input; 0 where a step is an id */
  int64_t vocabulary; /* ids are from 0 to below this; 0 where a step is numbers */
  int64_t outputs;    /* a classifier: the number of classes; else the width of a step of the output */
  int32_t is_classifier;
  int32_t is_streamable; /* 0: a call of seqcls_run() takes whole sequences, and seqcls_step() is refused */
  int32_t layers, directions;
  int64_t hidden, projection; /* units of a layer; width of the projected state, or 0 */
} seqcls_info;

SEQCLS_API seqcls_status seqcls_describe(const seqcls_model* model, seqcls_info* info);

/* ---- Streams ----------------------------------------------------------------------------------------------------- */

typedef struct seqcls_stream seqcls_stream;

/* Makes a stream of `rows` sequences, each of which may begin anew and move on independently of the others.
 * `steps`: the number of steps of each row that it has memory for. A streamable model takes chunks of any size, and
 * works through them in pieces of so many steps; a model that needs whole sequences takes none that are longer. */
SEQCLS_API seqcls_status seqcls_stream_new(const seqcls_model* model, int64_t rows, int64_t steps,
                                           seqcls_stream** stream);

/* The memory that such a stream takes, in bytes; 0 after an error. */
SEQCLS_API size_t seqcls_stream_bytes(const seqcls_model* model, int64_t rows, int64_t steps);

SEQCLS_API void seqcls_stream_close(seqcls_stream* stream);

/* What a call takes and writes. Set all of it to zero first, and then the fields that are wanted. What is written must
 * not overlap what is read. The arrays have a row for each row that moves on: where the shapes below say `rows`, this
 * is `count` if the field `rows` is given. */
typedef struct {
  int64_t steps;          /* of each row, from 0 to 2^31 */
  const float* x;         /* (rows, steps, features); or */
  const double* x_double; /* the same in double, for a model of series alone, which scales its input in double; or */
  const int64_t* ids;     /* (rows, steps), for a model that takes ids */
  const int64_t* lengths; /* (rows,): how many steps each row has, from 0 to `steps`; NULL: all of them */
  const uint8_t* resets;  /* (rows, steps): not 0 where a row begins anew before the step; NULL: nowhere. For layers
                             alone: a row of a classifier begins anew by seqcls_reset() */
  const int64_t* rows;    /* the rows of the stream that move on, each once; NULL: all of them, whatever `count` is */
  int64_t count;          /* how many these are; not read where `rows` is NULL */
  float* out;             /* layers: (rows, steps, outputs), zeros beyond a row's length; a classifier: (rows, outputs),
                             the probabilities of the classes for each sequence up to here; or NULL */
  float* logits;          /* a classifier: (rows, outputs), from which these come; or NULL */
  double* probabilities;  /* a classifier: the numbers of `out` as they are before they are rounded to float; or NULL */
  int64_t* classes;       /* a classifier: (rows,), the class that is predicted, by the threshold if there is one */
} seqcls_call;

/* Runs some steps of some rows. A model that is not streamable takes whole sequences, each from its beginning.
 * After an error no row has moved. A model of series with a "max_length" (it stands in `about`) takes no more steps of
 * a sequence: those beyond are not read, and change nothing. */
SEQCLS_API seqcls_status seqcls_run(seqcls_stream* stream, const seqcls_call* call);

/* The shortest call: one step of every row. x is (rows, features), out as in seqcls_call, or NULL. Models that take
 * ids, and those that need whole sequences, are refused. It is fastest for streams of one row. */
SEQCLS_API seqcls_status seqcls_step(seqcls_stream* stream, const float* x, float* out);

/* Lets a row begin anew; -1 stands for all rows. */
SEQCLS_API seqcls_status seqcls_reset(seqcls_stream* stream, int64_t row);

/* What a row has kept of its steps, as bytes: with them it goes on in any stream of the same file, in another process
 * or on another machine with the same order of bytes too. It has the bits that it would have had here where the model
 * was opened with the same kernels (`isa` in seqcls_info): on another CPU "auto" may stand for others. `bytes` is what
 * seqcls_state_bytes() says, for any row of any stream of the model; 0 for a model that needs whole sequences. */
SEQCLS_API size_t seqcls_state_bytes(seqcls_stream* stream);
SEQCLS_API seqcls_status seqcls_get_state(seqcls_stream* stream, int64_t row, void* state, size_t bytes);
SEQCLS_API seqcls_status seqcls_set_state(seqcls_stream* stream, int64_t row, const void* state, size_t bytes);

/* ---- Texts ------------------------------------------------------------------------------------------------------- */

/* Set all of it to zero first. The texts are in UTF-8 and may hold any character, zeros too. */
typedef struct {
  int64_t count;            /* of the texts */
  const char* const* texts; /* (count,) */
  const size_t* sizes;      /* (count,): their sizes in bytes */
  int32_t are_normal;       /* not 0: they are in the model's form of Unicode, and lower-cased where it wants that */
  const int64_t* ids; /* the ids of all texts one after another, for a model whose tokens are byte pairs; else NULL */
  const int64_t* lengths; /* (count,): how many ids each text has; NULL where ids is */
  float* logits;          /* (count, outputs), or NULL */
  double* probabilities;  /* (count, outputs), or NULL */
  int64_t* classes;       /* (count,), the classes that are predicted, by the threshold if there is one; or NULL */
} seqcls_texts;

/* Classifies whole texts with a model that was trained on texts. It allocates memory; any number of threads may call it
 * at a time. Of each text the model takes as many ids as the "max_length" in its `about` says: those beyond are cut
 * off, those in `ids` too. seqcls_run() cuts no ids. */
SEQCLS_API seqcls_status seqcls_classify(const seqcls_model* model, const seqcls_texts* texts);

#if defined(__cplusplus)
}
#endif
#endif
