/* The C way of fan-out: see notify/transport/fanout.py, which chooses it, and notify/core/dispatcher.py for the Python way.

   It does what the loop in Python does, in the same order, and differs in one thing: a frame for a connection that is clear
   goes to the socket's descriptor by send(2) at once, without Python's calls and objects around it. Whatever else there is
   to do, Connection does: what was not sent whole is given to its method `left`, any other connection is written to by `write`.

   Connection's slots are read where their descriptors say they are, which holds for its subclasses, too. No reference is
   borrowed over a call into Python. The GIL is kept: send never waits (MSG_DONTWAIT), and letting go of it each time would
   cost 2 % of a delivery. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <sys/socket.h>

typedef struct {
    PyObject_HEAD
    PyTypeObject *connection; /* owned, as are the names */
    Py_ssize_t clear, descriptor, encoding; /* where these slots are in an instance, in bytes */
    PyObject *name_encoding, *name_left, *name_write;
} FanOut;

/* What a slot of an instance holds, borrowed; NULL: nothing. */
static inline PyObject *
slot(PyObject *instance, Py_ssize_t where)
{
    return *(PyObject **)((char *)instance + where);
}

/* Where a slot of a class is; -1 with an exception set: it has no slot of that name. */
static Py_ssize_t
find_slot(PyTypeObject *class, const char *name)
{
    Py_ssize_t where = -1;
    PyObject *found = PyObject_GetAttrString((PyObject *)class, name);
    if (found == NULL) {
        return -1;
    }
    if (Py_IS_TYPE(found, &PyMemberDescr_Type) && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX) {
        where = ((PyMemberDescrObject *)found)->d_member->offset;
    }
    else {
        PyErr_Format(PyExc_TypeError, "%s.%s is no slot", class->tp_name, name);
    }
    Py_DECREF(found);
    return where;
}

/* The descriptor of the socket that a frame may go straight to; -1: of none. `connection` is an instance of self->connection. */
static int
clear_descriptor(FanOut *self, PyObject *connection)
{
    PyObject *number;
    int overflow;
    long descriptor;
    if (slot(connection, self->clear) != Py_True) {
        return -1;
    }
    number = slot(connection, self->descriptor);
    if (number == NULL || !PyLong_CheckExact(number)) {
        return -1;
    }
    descriptor = PyLong_AsLongAndOverflow(number, &overflow);
    return overflow || descriptor < 0 || descriptor > INT_MAX ? -1 : (int)descriptor;
}

/* Write a frame to one connection; 0, or -1 with an exception set. */
static int
write_to(FanOut *self, PyObject *connection, int ours, PyObject *frame)
{
    Py_ssize_t size = PyBytes_GET_SIZE(frame), sent;
    PyObject *done;
    int descriptor = ours ? clear_descriptor(self, connection) : -1;
    if (descriptor < 0) {
        done = PyObject_CallMethodOneArg(connection, self->name_write, frame);
    }
    else {
        PyObject *count;
        sent = send(descriptor, PyBytes_AS_STRING(frame), (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == size) {
            return 0;
        }
        /* An error is the transport's to find out, which sends again. */
        count = PyLong_FromSsize_t(sent < 0 ? 0 : sent);
        if (count == NULL) {
            return -1;
        }
        done = PyObject_CallMethodObjArgs(connection, self->name_left, frame, count, NULL);
        Py_DECREF(count);
    }
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyObject *
fan_out_call(FanOut *self, PyObject *args, PyObject *kwargs)
{
    PyObject *connections, *frames, *encoding = NULL, *frame = NULL;
    int failed = 0;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "FanOut takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &connections, &frames)) {
        return NULL;
    }
    /* Whatever runs meanwhile may change the list: its length is asked for each time. */
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(connections); i++) {
        PyObject *connection = Py_NewRef(PyList_GET_ITEM(connections, i)), *its;
        int ours = PyObject_TypeCheck(connection, self->connection);
        its = ours ? Py_XNewRef(slot(connection, self->encoding)) : NULL;
        if (its == NULL) {
            its = PyObject_GetAttr(connection, self->name_encoding);
        }
        if (its == NULL) {
            failed = 1;
        }
        else if (its == encoding) {
            Py_DECREF(its);
        }
        else {
            Py_XSETREF(encoding, its);
            Py_XSETREF(frame, PyObject_GetItem(frames, encoding));
            if (frame != NULL && !PyBytes_Check(frame)) {
                PyErr_Format(PyExc_TypeError, "a frame is bytes, not %.100s", Py_TYPE(frame)->tp_name);
                Py_CLEAR(frame);
            }
            failed = frame == NULL;
        }
        if (!failed && PyBytes_GET_SIZE(frame) != 0) {
            failed = write_to(self, connection, ours, frame) < 0;
        }
        Py_DECREF(connection);
    }
    Py_XDECREF(encoding);
    Py_XDECREF(frame);
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
fan_out_traverse(FanOut *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->connection);
    return 0;
}

static int
fan_out_clear(FanOut *self)
{
    Py_CLEAR(self->connection);
    return 0;
}

static void
fan_out_dealloc(FanOut *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    fan_out_clear(self);
    Py_CLEAR(self->name_encoding);
    Py_CLEAR(self->name_left);
    Py_CLEAR(self->name_write);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
fan_out_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyTypeObject *connection;
    FanOut *self;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "FanOut() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!", &PyType_Type, &connection)) {
        return NULL;
    }
    self = (FanOut *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->connection = (PyTypeObject *)Py_NewRef((PyObject *)connection);
    if ((self->clear = find_slot(connection, "_clear")) < 0
        || (self->descriptor = find_slot(connection, "_descriptor")) < 0
        || (self->encoding = find_slot(connection, "encoding")) < 0
        || (self->name_encoding = PyUnicode_InternFromString("encoding")) == NULL
        || (self->name_left = PyUnicode_InternFromString("left")) == NULL
        || (self->name_write = PyUnicode_InternFromString("write")) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

PyDoc_STRVAR(fan_out_doc, "FanOut(Connection): called with a list of connections and the frames by encoding, it writes each its own.");

static PyType_Slot fan_out_slots[] = {
    {Py_tp_doc, (void *)fan_out_doc},
    {Py_tp_new, fan_out_new},
    {Py_tp_call, fan_out_call},
    {Py_tp_traverse, fan_out_traverse},
    {Py_tp_clear, fan_out_clear},
    {Py_tp_dealloc, fan_out_dealloc},
    {0, NULL},
};

static PyType_Spec fan_out_spec = {
    .name = "notify.transport._fanout.FanOut",
    .basicsize = sizeof(FanOut),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = fan_out_slots,
};

static int
execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &fan_out_spec, NULL);
    int failed;
    if (type == NULL) {
        return -1;
    }
    failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "notify.transport._fanout",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__fanout(void)
{
    return PyModuleDef_Init(&module);
}
