#ifdef __FAST_MATH__
#define JIT 1
#define JIT_cpu 1
#else
#include <Python.h>
#endif
#include "common.h"
#include "var.h"
#include "op.h"
#include "executor.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "ops/op_register.h"
#include "ops/array_op.h"
#include "ops/binary_op.h"
#include "ops/broadcast_to_op.h"
#include "ops/reduce_op.h"
#include "ops/unary_op.h"
#include <algorithm>
#include <assert.h>
#include <cmath>
#include <iostream>
#include <limits>
#include <sstream>
#include <unordered_map>
#include <vector>
